"""What no single key can know: names that must exist or be unique, routes that can never match, directories.

Works on the plain tree, not on the model, so that these problems are reported together with those of the model.
"""

from __future__ import annotations

import importlib.util
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from gateway.config.document import KeyPath
from gateway.config.model import ACTIONS, Match


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing wrong with a config file: where, and what to do."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        """Write it as compilers do: file:line: key: message."""
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


Finding = tuple[KeyPath, str]

_PATHS = ("path", "prefix", "regex")


def cross_check(tree: Any) -> Iterator[Finding]:
    """Yield what is wrong between keys. Anything of the wrong type is passed over: the model reports it."""
    upstreams = _mapping(_mapping(tree).get("upstreams"))
    routes = [(index, _mapping(route)) for index, route in enumerate(_sequence(_mapping(tree).get("routes")))]
    yield from _check_tls(_mapping(_mapping(tree).get("tls")))
    yield from _check_names(routes)
    for index, route in routes:
        yield from _check_action(("routes", index), route)
        yield from _check_match(("routes", index, "match"), _mapping(route.get("match")))
        yield from _check_directories(("routes", index), route)
        yield from _check_allow(("routes", index, "fetch", "allow"), _mapping(route.get("fetch")))
        mirror = _mapping(_mapping(route.get("forward")).get("mirror"))
        yield from _check_mirror(("routes", index, "forward", "mirror"), mirror, upstreams)
        yield from _check_filters(("routes", index), route)
        yield from _check_shape(("routes", index, "forward"), _mapping(route.get("forward")))
        for action in ("forward", "split"):
            name = _mapping(route.get(action)).get("upstream")
            if isinstance(name, str) and name not in upstreams:
                known = ", ".join(sorted(map(str, upstreams))) or "none is configured"
                yield ("routes", index, action, "upstream"), f"no upstream {name!r}: use one of upstreams ({known})"
    yield from _check_reach(routes)


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """Return what TLS for clients is spoken with. Raises OSError, of which ssl.SSLError is one."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # A key with a passphrase would make OpenSSL ask the terminal for it.
    context.load_cert_chain(certificate, key, password="")
    context.set_alpn_protocols(["http/1.1"])
    return context


def _check_tls(tls: dict[str, Any]) -> Iterator[Finding]:
    certificate, key = tls.get("certificate"), tls.get("key")
    if not isinstance(certificate, str) or not isinstance(key, str):
        return
    unreadable = [(name, tls[name]) for name in ("certificate", "key") if not os.access(tls[name], os.R_OK)]
    for name, file in unreadable:
        yield ("tls", name), f"{file!r} cannot be read: check the path and its mode"
    if unreadable:
        return
    try:
        server_context(certificate, key)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or str(exc)
        yield ("tls",), f"certificate and key cannot be used ({reason}): give PEM files that belong together"


def _check_names(routes: list[tuple[int, dict[str, Any]]]) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for index, route in routes:
        name = route.get("name")
        if isinstance(name, str) and first.setdefault(name, index) != index:
            yield ("routes", index, "name"), f"the name {name!r} is also routes[{first[name]}]'s: choose another"


def _check_action(path: KeyPath, route: dict[str, Any]) -> Iterator[Finding]:
    actions = [action for action in ACTIONS if action in route]
    if not actions:
        yield path, f"the route has no action: add one of {', '.join(ACTIONS)}"
    for extra in actions[1:]:
        yield (*path, extra), f"a route has one action and this one already has {actions[0]}: make it two routes"


def _check_filters(path: KeyPath, route: dict[str, Any]) -> Iterator[Finding]:
    if not route.get("filters"):
        return
    if "files" in route or "fetch" in route:
        yield (*path, "filters"), "filters look at uploads, and this route takes none: remove them"
    if _mapping(route.get("forward")).get("multipart") == "opaque":
        yield (*path, "filters"), "filters see no files with multipart: opaque: set it to inspect, or remove them"


def _check_shape(path: KeyPath, forward: dict[str, Any]) -> Iterator[Finding]:
    if forward.get("multipart") == "opaque":
        for key in ("body", "form_fields"):
            if forward.get(key) not in (None, "as_is"):
                yield (*path, key), f"{key} needs forms to be read, and multipart is opaque: set it to inspect"


def _check_mirror(path: KeyPath, mirror: dict[str, Any], upstreams: dict[str, Any]) -> Iterator[Finding]:
    name, directory = mirror.get("upstream"), mirror.get("directory")
    if mirror and (name is None) == (directory is None):
        yield path, "a mirror has an upstream or a directory: give one of them"
    if isinstance(name, str) and name not in upstreams:
        known = ", ".join(sorted(map(str, upstreams))) or "none is configured"
        yield (*path, "upstream"), f"no upstream {name!r}: use one of upstreams ({known})"
    if isinstance(directory, str) and not (Path(directory).is_dir() and os.access(directory, os.W_OK | os.X_OK)):
        yield (*path, "directory"), f"{directory!r} is not a directory this user can write to: create it, or its mode"


def _check_match(path: KeyPath, match: dict[str, Any]) -> Iterator[Finding]:
    kinds = [kind for kind in _PATHS if kind in match]
    for extra in kinds[1:]:
        yield (*path, extra), f"a match has one of path, prefix and regex, and this one already has {kinds[0]}"


def _check_directories(path: KeyPath, route: dict[str, Any]) -> Iterator[Finding]:
    for action, mode, doing in (("store", os.W_OK | os.X_OK, "written to"), ("files", os.R_OK | os.X_OK, "read")):
        if action not in route:
            continue
        place = _mapping(route[action])
        directory = place.get("directory")
        if (directory is None) == (place.get("url") is None):
            yield (*path, action), f"{action} has a directory or a url: give one of them"
        if place.get("url") is not None and importlib.util.find_spec("obstore") is None:
            yield (*path, action, "url"), "object stores need a package that is not here: pip install obstore"
        if not isinstance(directory, str):
            continue
        where = (*path, action, "directory")
        if not Path(directory).is_dir():
            yield where, f"{directory!r} is not a directory: create it, or name another"
        elif not os.access(directory, mode):
            yield where, f"{directory!r} cannot be {doing} by this user: change its mode or owner"


def _check_allow(path: KeyPath, fetch: dict[str, Any]) -> Iterator[Finding]:
    for index, prefix in enumerate(_sequence(fetch.get("allow"))):
        if not isinstance(prefix, str):
            continue
        try:
            url = urlsplit(prefix)
            sound = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
        except ValueError:
            sound = False
        if not sound or url.username is not None or url.query or url.fragment:
            yield (*path, index), f"{prefix!r} is not a URL prefix: write https://host[:port]/path/"


def _check_reach(routes: list[tuple[int, dict[str, Any]]]) -> Iterator[Finding]:
    """Yield routes that an earlier one of equal precedence always wins over."""
    seen: list[tuple[int, dict[str, Any], Match]] = []
    for index, route in routes:
        try:
            match = Match.model_validate(_mapping(route.get("match")))
        except ValidationError:
            continue
        for earlier_index, earlier_route, earlier in seen:
            if _shadows(earlier, match):
                name = earlier_route.get("name", f"routes[{earlier_index}]")
                message = f"never reached: {name!r} takes every such request first; remove one or narrow its match"
                yield ("routes", index, "match"), message
                break
        seen.append((index, route, match))


def _shadows(earlier: Match, later: Match) -> bool:
    """Say whether every request of `later` goes to `earlier`: the same path and host, and no condition more."""
    same_place = (
        earlier.host == later.host
        and earlier.path == later.path
        and _segments(earlier.prefix) == _segments(later.prefix)
        and (earlier.regex.pattern if earlier.regex else None) == (later.regex.pattern if later.regex else None)
    )
    if not same_place:
        return False
    if earlier.methods is not None:
        return (
            later.methods is not None
            and set(later.methods) <= set(earlier.methods)
            and earlier.headers.items() <= later.headers.items()
            and (len(earlier.headers) == len(later.headers))
            and earlier.form_fields == later.form_fields
        )
    # A route that names methods goes before one that does not, and one with more fields before one with fewer.
    return later.methods is None and earlier.headers == later.headers and earlier.form_fields == later.form_fields


def _segments(prefix: str | None) -> str | None:
    return None if prefix is None else prefix.rstrip("/")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _sequence(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

"""Checks that need more than one key or the file system: references, unique names, unreachable routes, directories.

They run on the parsed YAML tree and not on the model, so that their problems are reported together with the model's.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import ssl
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.config.addresses import check_addresses
from gateway.config.document import KeyPath
from gateway.config.kinds import Finding
from gateway.config.model import ACTIONS, Match
from gateway.config.url import parse_url


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A problem of a config file: its place, what is wrong and how to mend it. `line` counts from 1; 0 is no line."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        """Return the problem in the form of compilers: file:line: key: message."""
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


_PATHS = ("path", "prefix", "regex")
#: Upstreams that a message names.
_MAX_NAMED = 20


def cross_check(tree: Any) -> Iterator[Finding]:
    """Yield the problems between keys. Values of the wrong type are skipped: the model reports them."""
    upstreams = _mapping(_mapping(tree).get("upstreams"))
    routes = [(index, _mapping(route)) for index, route in enumerate(_sequence(_mapping(tree).get("routes")))]
    yield from check_addresses(_mapping(tree))
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
                yield ("routes", index, action, "upstream"), _no_upstream(name, upstreams)
    yield from _check_reach(routes)


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """Return the TLS context of the traffic port. Raises OSError (ssl.SSLError included) for unusable files."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # Without a password, OpenSSL prompts on the terminal for the passphrase of an encrypted key.
    context.load_cert_chain(certificate, key, password="")
    context.set_alpn_protocols(["http/1.1"])
    return context


def _check_tls(tls: dict[str, Any]) -> Iterator[Finding]:
    certificate, key = tls.get("certificate"), tls.get("key")
    if not isinstance(certificate, str) or not isinstance(key, str):
        return
    unreadable = [(name, tls[name]) for name in ("certificate", "key") if not os.access(tls[name], os.R_OK)]
    for name, file in unreadable:
        yield ("tls", name), f"{file!r} cannot be read: check the path and the file's mode"
    if unreadable:
        return
    try:
        server_context(certificate, key)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or str(exc)
        yield ("tls",), f"certificate and key cannot be used ({reason}): give a PEM certificate and its PEM key"


def _check_names(routes: list[tuple[int, dict[str, Any]]]) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for index, route in routes:
        name = route.get("name")
        if isinstance(name, str) and first.setdefault(name, index) != index:
            yield ("routes", index, "name"), f"routes[{first[name]}] already has the name {name!r}: choose another"


def _check_action(path: KeyPath, route: dict[str, Any]) -> Iterator[Finding]:
    actions = [action for action in ACTIONS if route.get(action) is not None]
    if not actions:
        yield path, f"the route has no action: add one of {', '.join(ACTIONS)}"
    for extra in actions[1:]:
        yield (*path, extra), f"a route has exactly one action and this one has {actions[0]}: write two routes"


def _check_filters(path: KeyPath, route: dict[str, Any]) -> Iterator[Finding]:
    if not route.get("filters"):
        return
    if "files" in route or "fetch" in route:
        yield (*path, "filters"), "filters apply to uploads, and a route with files or fetch has none: remove them"
    if _mapping(route.get("forward")).get("multipart") == "opaque":
        yield (
            (*path, "filters"),
            "filters need multipart: inspect or strict, this route has opaque: change it or remove them",
        )


def _check_shape(path: KeyPath, forward: dict[str, Any]) -> Iterator[Finding]:
    if forward.get("multipart") == "opaque":
        for key in ("body", "form_fields"):
            if forward.get(key) not in (None, "as_is"):
                yield (
                    (*path, key),
                    f"{key} needs multipart: inspect or strict, this route has opaque: change it or remove {key}",
                )


def _check_mirror(path: KeyPath, mirror: dict[str, Any], upstreams: dict[str, Any]) -> Iterator[Finding]:
    name, directory = mirror.get("upstream"), mirror.get("directory")
    if mirror and (name is None) == (directory is None):
        yield path, "a mirror has either an upstream or a directory: give exactly one of them"
    if isinstance(name, str) and name not in upstreams:
        yield (*path, "upstream"), _no_upstream(name, upstreams)
    if isinstance(directory, str) and not (os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK)):
        yield (
            (*path, "directory"),
            f"{directory!r} is not a directory this user can write to: create it, or change its mode",
        )


def _check_match(path: KeyPath, match: dict[str, Any]) -> Iterator[Finding]:
    kinds = [kind for kind in _PATHS if kind in match]
    for extra in kinds[1:]:
        yield (*path, extra), f"a match has one of path, prefix and regex, and this one has {kinds[0]}: remove one"


def _check_directories(path: KeyPath, route: dict[str, Any]) -> Iterator[Finding]:
    for action, mode, doing in (("store", os.W_OK | os.X_OK, "written to"), ("files", os.R_OK | os.X_OK, "read")):
        if action not in route:
            continue
        section = _mapping(route[action])
        directory = section.get("directory")
        if (directory is None) == (section.get("url") is None):
            yield (*path, action), f"{action} has either a directory or a url: give exactly one of them"
        if section.get("url") is not None and importlib.util.find_spec("obstore") is None:
            yield (*path, action, "url"), "object stores need a package that is not installed: pip install obstore"
        if not isinstance(directory, str):
            continue
        where = (*path, action, "directory")
        # Path.is_dir raises for a name that is too long.
        if not os.path.isdir(directory):
            yield where, f"{directory!r} is not a directory: create it, or name another"
        elif not os.access(directory, mode):
            yield where, f"{directory!r} cannot be {doing} by this user: change its mode or owner"


def _check_allow(path: KeyPath, fetch: dict[str, Any]) -> Iterator[Finding]:
    for index, prefix in enumerate(_sequence(fetch.get("allow"))):
        if not isinstance(prefix, str):
            continue
        try:
            is_valid = not parse_url(prefix).query
        except ValueError:
            is_valid = False
        if not is_valid and "@" in prefix:
            yield (*path, index), "a URL prefix has no user name and no password: remove them"
        elif not is_valid:
            yield (*path, index), f"{prefix!r} is not a URL prefix: write https://host[:port]/path/"


def _no_upstream(name: str, upstreams: dict[str, Any]) -> str:
    known = ", ".join(map(str, itertools.islice(upstreams, _MAX_NAMED))) or "none is configured"
    more = ", ..." if len(upstreams) > _MAX_NAMED else ""
    return f"no upstream {name!r}: use one of upstreams ({known}{more})"


def _check_reach(routes: list[tuple[int, dict[str, Any]]]) -> Iterator[Finding]:
    """Yield the routes that can never match, because an earlier route takes every such request."""
    earlier: dict[Hashable, _SameRequests] = {}
    for index, route in routes:
        match = Match.read(_mapping(route.get("match")), (), [])
        if match is None:
            continue
        same = earlier.setdefault(_condition(match), _SameRequests())
        first = same.find(match.methods)
        if first is not None:
            name = routes[first][1].get("name", f"routes[{first}]")
            message = f"never reached: route {name!r} takes every such request; remove one or narrow its match"
            yield ("routes", index, "match"), message
        same.add(match.methods, index)


def _condition(match: Match) -> Hashable:
    """Return all that a route matches but the methods.

    A route with other headers or form fields than an earlier one of the same path is reached: one with more of them
    precedes one with fewer.
    """
    regex = match.regex.pattern if match.regex else None
    where = match.host, match.path, _segments(match.prefix), regex
    return where, frozenset(match.headers.items()), frozenset(match.form_fields.items())


class _SameRequests:
    """The routes with one condition, in order, by their methods."""

    def __init__(self) -> None:
        #: The first without methods: it takes every request that no route with methods takes.
        self._any: int | None = None
        #: By each of their methods: the route's index, and its methods.
        self._by_method: dict[str, list[tuple[int, frozenset[str]]]] = {}

    def find(self, methods: Sequence[str] | None) -> int | None:
        """Return the index of the first route that takes all requests with these methods; None without one."""
        if methods is None:
            return self._any
        wanted = frozenset(methods)
        candidates = min((self._by_method.get(method, []) for method in wanted), key=len, default=[])
        return next((index for index, taken in candidates if wanted <= taken), None)

    def add(self, methods: Sequence[str] | None, index: int) -> None:
        """Add a route."""
        if methods is None:
            self._any = index if self._any is None else self._any
        else:
            for method in methods:
                self._by_method.setdefault(method, []).append((index, frozenset(methods)))


def _segments(prefix: str | None) -> str | None:
    return None if prefix is None else prefix.rstrip("/")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _sequence(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

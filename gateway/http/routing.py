"""Which route a request belongs to, and which path goes upstream. Pure: no await, no aiohttp.

Precedence follows HTTPRoute of the Kubernetes Gateway API: host (exact, wildcard, any), then exact path, longest
prefix by segments, regex; then a route that names methods before one that does not, then more header matches, then
more form fields, then the order in the file. The path is matched as it was sent, with percent-encoded unreserved
characters decoded (RFC 3986 section 6.2.2.2) and nothing else resolved: dots and empty segments belong to the
upstream, which gets them as they came.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.config import Route
from gateway.errors import Fault, FaultKind

_UNRESERVED: Final = re.compile(r"%(4[1-9A-Fa-f]|5[0-9Aa]|6[1-9A-Fa-f]|7[0-9Aa]|3[0-9]|2[DdEe]|5[Ff]|7[Ee])")


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """A route and the part of the path that its condition left over."""

    route: Route
    #: For a prefix the path behind it, without the joining slash; for the others "".
    rest: str
    #: The path to send upstream.
    path: str


class RouteTable:
    """The routes of a config in the order in which they are tried."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes: Sequence[Route] = [route for _, route in sorted(enumerate(routes), key=_rank)]
        self._rows = [_make_row(route) for route in self.routes]

    def find(self, *, host: str, path: str, method: str, header: Callable[[bytes], bytes | None]) -> list[RouteMatch]:
        """Return the route of a request. `host` has no port, `path` is as sent, `header` looks up a header.

        Where form fields have a say, return every route they may choose, in order: only the last one may have no such
        condition.

        Raises Fault NO_ROUTE, or METHOD_NOT_ALLOWED with Allow where only the method is wrong (RFC 9110 15.5.6).
        """
        plain = _UNRESERVED.sub(lambda found: chr(int(found[1], 16)), path) if "%" in path else path
        allowed: set[str] = set()
        candidates: list[RouteMatch] = []
        for row in self._rows:
            route = row.route
            if not _host_matches(route.match.host, host) or (rest := _path_rest(row, plain)) is None:
                continue
            if row.headers and any(header(key) != value for key, value in row.headers):
                continue
            if row.methods is None or method in row.methods:
                candidates.append(RouteMatch(route, rest, _rewrite(row, path, plain)))
                if not route.match.form_fields:
                    return candidates
            else:
                allowed.update(row.methods)
        if candidates:
            return candidates
        if allowed:
            allow = ", ".join(sorted(allowed))
            raise Fault(
                FaultKind.METHOD_NOT_ALLOWED,
                f"Method {method} is not taken here: use one of {allow}, or widen the route's match.methods.",
                headers=((b"Allow", allow.encode("latin-1")),),
            )
        raise Fault(
            FaultKind.NO_ROUTE, "No route matches this host and path: check the URL, or `gateway routes` for the table."
        )


@dataclass(frozen=True, slots=True)
class _Row:
    """A route, and what of its conditions can be made ready before a request comes."""

    route: Route
    #: Without its last slash.
    prefix: str
    headers: Sequence[tuple[bytes, bytes]]
    methods: Sequence[str] | None
    rewrite: str | None


#: What an action can do when its route names no methods.
_METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "split": ("POST", "PUT"),
    "store": ("POST", "PUT"),
    "files": ("GET", "HEAD"),
    "fetch": ("GET", "HEAD"),
}


def describe_match(route: Route) -> str:
    """Write the conditions of a route in one line, for people."""
    match = route.match
    methods = match.methods or _METHODS.get(route.action_name)
    words = ["|".join(methods) if methods else "any method"]
    if match.host:
        words.append(f"host {match.host}")
    if match.path is not None:
        words.append(f"path {match.path}")
    elif match.regex is not None:
        words.append(f"regex {match.regex.pattern}")
    else:
        words.append(f"prefix {match.prefix or '/'}")
    words += [f"{name}: {value}" for name, value in match.headers.items()]
    words += [f"form field {name}={value}" for name, value in match.form_fields.items()]
    return ", ".join(words)


def _make_row(route: Route) -> _Row:
    match, action = route.match, route.forward or route.split
    return _Row(
        route,
        (match.prefix or "/").rstrip("/"),
        [(name.lower().encode(), value.encode(errors="surrogateescape")) for name, value in match.headers.items()],
        match.methods or _METHODS.get(route.action_name),
        action.rewrite if action else None,
    )


def _rank(numbered: tuple[int, Route]) -> tuple[int, ...]:
    order, route = numbered
    match = route.match
    host = 2 if match.host is None else 1 if match.host.startswith("*.") else 0
    if match.path is not None:
        kind, length = 0, 0
    elif match.regex is not None:
        kind, length = 2, 0
    else:
        kind, length = 1, len((match.prefix or "/").rstrip("/"))
    return host, kind, -length, 0 if match.methods else 1, -len(match.headers), -len(match.form_fields), order


def _host_matches(wanted: str | None, host: str) -> bool:
    if wanted is None:
        return True
    if wanted.startswith("*."):
        return host.endswith(wanted[1:]) and len(host) > len(wanted) - 1
    return host == wanted


def _path_rest(row: _Row, path: str) -> str | None:
    match = row.route.match
    if match.path is not None:
        return "" if path == match.path else None
    if match.regex is not None:
        return "" if match.regex.fullmatch(path) else None
    prefix = row.prefix
    if path == prefix:
        return ""
    return path[len(prefix) + 1 :] if path.startswith(prefix + "/") else None


def _rewrite(row: _Row, path: str, plain: str) -> str:
    """Return the path for the upstream: as sent, unless the route rewrites it."""
    rewrite = row.rewrite
    if rewrite is None:
        return path
    match = row.route.match
    if match.path is not None:
        return rewrite
    if match.regex is not None:
        found = match.regex.fullmatch(plain)
        return found.expand(rewrite) if found else path
    prefix = row.prefix
    # The prefix may be spelt with percent-encoding: count its segments, not its characters.
    behind = path.split("/", prefix.count("/") + 1)[prefix.count("/") + 1 :]
    if not behind:
        return rewrite
    return rewrite.rstrip("/") + "/" + behind[0]

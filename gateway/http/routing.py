"""Find the route of a request, and the path to send upstream. Pure: no await, no aiohttp.

Precedence follows HTTPRoute of the Kubernetes Gateway API: host (exact, wildcard, any), then exact path, longest
prefix by segments, regex; then a route with methods before one without, then more header matches, then more form
fields, then the order in the file. The path is matched as sent, except that percent-encoded unreserved characters
are decoded (RFC 3986 section 6.2.2.2): dots and empty segments are not resolved, the upstream receives them as sent.
A path that would match another route if they were is refused: the upstream may resolve them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from gateway.config import Route
from gateway.errors import Fault, FaultKind
from gateway.http.headers import ReceivedHeaders
from gateway.http.paths import climbs, has_readings, readings
from gateway.http.request_head import Target, check_message, check_target

_UNRESERVED: Final = re.compile(r"%(4[1-9A-Fa-f]|5[0-9Aa]|6[1-9A-Fa-f]|7[0-9Aa]|3[0-9]|2[DdEe]|5[Ff]|7[Ee])")


class RouteMatch(NamedTuple):
    """A route that matches a request, with the paths that depend on its condition."""

    route: Route
    #: For `match.prefix` the path after it, without the slash between them; "" for path and regex.
    rest: str
    #: The path to send upstream.
    path: str


class Found(NamedTuple):
    """What is known of a request by its method, target and host alone."""

    target: Target
    #: The routes that match, in order of precedence, see `RouteTable.find`.
    candidates: Sequence[RouteMatch]


#: Requests that a table remembers, and how long their target and host may be together.
_MAX_REMEMBERED: Final = 1024
_MAX_REMEMBERED_BYTES: Final = 512
#: Routes, and methods of those that have all but the method.
_Matched = tuple[list[RouteMatch], set[str]]


class RouteTable:
    """The routes of a config, in the order of precedence."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes: Sequence[Route] = [route for _, route in sorted(enumerate(routes), key=_rank)]
        self._index = _Index([_make_row(route) for route in self.routes])
        #: By method, target as sent and Host, those that were asked for before: few, and mostly the same.
        self.known: dict[tuple[str, str, bytes], Found] = {}
        self._depends_on_headers = any(route.match.headers for route in self.routes)

    def look_up(self, version: tuple[int, int], method: str, target: str, headers: ReceivedHeaders) -> Found:
        """Check a request head, and find its routes; none for the target `*`.

        Of a request that is known by now, only the head as a whole is checked. Raises Fault as `check_message`,
        `check_target` and `find`.
        """
        check_message(version, method, target, headers)
        hosts = headers.all(b"host")
        # An empty Host is not the same as none or two, which are refused.
        key = (method, target, hosts[0]) if len(hosts) == 1 else None
        found = self.known.get(key) if key is not None else None
        if found is None:
            checked = check_target(version, method, target, headers)
            candidates: Sequence[RouteMatch] = ()
            if checked.path != "*":
                candidates = self.find(host=checked.host, path=checked.path, method=method, header=headers.joined)
            found = Found(checked, candidates)
            if key is not None and len(target) + len(key[2]) <= _MAX_REMEMBERED_BYTES and not self._depends_on_headers:
                if len(self.known) >= _MAX_REMEMBERED:
                    # A client that invents paths costs all of them a look-up.
                    self.known.clear()
                self.known[key] = found
        return found

    def find(self, *, host: str, path: str, method: str, header: Callable[[bytes], bytes | None]) -> list[RouteMatch]:
        """Return the matching routes. `host` has no port, `path` is as sent, `header` returns a header's value.

        More than one route is returned if form fields decide between them: in order of precedence, all but perhaps
        the last with `match.form_fields`.

        Raises Fault NO_ROUTE, METHOD_NOT_ALLOWED with Allow if only the method does not match (RFC 9110 15.5.6), or
        BAD_TARGET for a path whose readings match different routes.
        """
        plain = _UNRESERVED.sub(lambda found: chr(int(found[1], 16)), path) if "%" in path else path
        candidates, allowed = self._match(host, path, plain, method, header)
        if has_readings(plain):
            self._check_readings(plain, candidates, lambda reading: self._match(host, reading, reading, method, header))
        if candidates:
            return candidates
        if allowed:
            allow = ", ".join(sorted(allowed))
            raise Fault(
                FaultKind.METHOD_NOT_ALLOWED,
                f"No route for this host and path has the method {method}: use one of {allow}, or add it to the "
                "route's match.methods.",
                headers=((b"Allow", allow.encode("latin-1")),),
            )
        raise Fault(
            FaultKind.NO_ROUTE,
            "No route matches this host, path and headers: check the URL, or the routing table of `gateway routes`.",
        )

    def _match(
        self, host: str, path: str, plain: str, method: str, header: Callable[[bytes], bytes | None]
    ) -> _Matched:
        """Return the matching routes, and the methods of those that only do not have this one."""
        allowed: set[str] = set()
        candidates: list[RouteMatch] = []
        for row in self._index.find(host, plain):
            if (rest := _path_rest(row, plain)) is None:
                continue
            if row.headers and any(header(key) != value for key, value in row.headers):
                continue
            if row.methods is None or method in row.methods:
                sent = path if row.rewrite is None else _rewrite(row, row.rewrite, path, plain)
                candidates.append(RouteMatch(row.route, rest, sent))
                if not row.has_form_fields:
                    break
            else:
                allowed.update(row.methods)
        return candidates, allowed

    def _check_readings(self, plain: str, candidates: Sequence[RouteMatch], match: Callable[[str], _Matched]) -> None:
        """Refuse a path that leads to another route if its reader resolves it. Raises Fault BAD_TARGET.

        One that leads to no route then is refused where dot segments are what climbs out of the route's prefix.
        """
        routes = [candidate.route for candidate in candidates]
        if not routes or routes[0].match.path == plain:
            return
        for reading in readings(plain):
            others, allowed = match(reading)
            is_other = [other.route for other in others] != routes if others else bool(allowed) or climbs(plain)
            if is_other:
                raise Fault(
                    FaultKind.BAD_TARGET,
                    "The path leads to another route once its dot segments, slashes and parameters are resolved: "
                    "send the path that is meant.",
                )


@dataclass(frozen=True, slots=True)
class _Row:
    """A route with its conditions in the form in which requests are compared."""

    route: Route
    #: The exact path, None for a route with a prefix or a regex.
    path: str | None
    regex: re.Pattern[str] | None
    #: Without its trailing slash.
    prefix: str
    headers: Sequence[tuple[bytes, bytes]]
    methods: Sequence[str] | None
    rewrite: str | None
    has_form_fields: bool


#: The hosts to look up where no route has one.
_ANY_HOST: Final = (None,)


class _Index:
    """Finds the rows that a host and a path may match, in the order of precedence.

    Exact paths, prefixes and hosts are looked up, so 20,000 of them cost no more than a few. What is tried one by one
    depends on the config alone: regexes, different lengths of prefixes and wildcard hosts.
    """

    def __init__(self, rows: Sequence[_Row]) -> None:
        self._rows = rows
        paths: defaultdict[tuple[str | None, str], list[int]] = defaultdict(list)
        prefixes: defaultdict[tuple[str | None, str], list[int]] = defaultdict(list)
        regexes: defaultdict[str | None, list[int]] = defaultdict(list)
        lengths: defaultdict[str | None, set[int]] = defaultdict(set)
        for number, row in enumerate(rows):
            match = row.route.match
            if match.path is not None:
                paths[match.host, match.path].append(number)
            elif match.regex is not None:
                regexes[match.host].append(number)
            else:
                prefixes[match.host, row.prefix].append(number)
                lengths[match.host].add(len(row.prefix))
        # Plain dictionaries: a look-up must add nothing.
        self._paths, self._prefixes, self._regexes = dict(paths), dict(prefixes), dict(regexes)
        self._prefix_lengths = {host: sorted(each) for host, each in lengths.items()}
        self._hosts = {row.route.match.host for row in rows}
        self._suffix_lengths = sorted({len(host) - 1 for host in self._hosts if host and host.startswith("*.")})
        self._has_hosts = self._hosts != {None}

    def find(self, host: str, path: str) -> Sequence[_Row]:
        """Return the rows whose host matches, and whose path or prefix matches; all those with a regex."""
        found: list[int] = []
        for pattern in self._patterns(host) if self._has_hosts else _ANY_HOST:
            found += self._paths.get((pattern, path), ())
            found += self._regexes.get(pattern, ())
            for length in self._prefix_lengths.get(pattern, ()):
                if length > len(path):
                    break
                if length == len(path) or path[length] == "/":
                    found += self._prefixes.get((pattern, path[:length]), ())
        if len(found) > 1:
            found.sort()
        return [self._rows[number] for number in found]

    def _patterns(self, host: str) -> Iterator[str | None]:
        """Yield the hosts of routes that match a host."""
        if host in self._hosts and not host.startswith("*."):
            yield host
        for length in self._suffix_lengths:
            # At least one character stands for the asterisk.
            if length < len(host) and (pattern := "*" + host[-length:]) in self._hosts:
                yield pattern
        if None in self._hosts:
            yield None


#: Methods of an action whose route has no match.methods; any for `forward`.
_METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "split": ("POST", "PUT"),
    "store": ("POST", "PUT"),
    "files": ("GET", "HEAD"),
    "fetch": ("GET", "HEAD"),
}


def describe_match(route: Route, hide: Callable[[str], str] = str) -> str:
    """Return the conditions of a route in one line, for display. `hide` makes values of headers fit to be shown."""
    match = route.match
    methods = match.methods or _METHODS.get(route.action_name)
    conditions = ["|".join(methods) if methods else "any method"]
    if match.host:
        conditions.append(f"host {match.host}")
    if match.path is not None:
        conditions.append(f"path {match.path}")
    elif match.regex is not None:
        conditions.append(f"regex {match.regex.pattern}")
    else:
        conditions.append(f"prefix {match.prefix or '/'}")
    conditions += [f"{name}: {hide(value)}" for name, value in match.headers.items()]
    conditions += [f"form field {name}={value}" for name, value in match.form_fields.items()]
    return ", ".join(conditions)


def _make_row(route: Route) -> _Row:
    match, action = route.match, route.forward or route.split
    return _Row(
        route,
        match.path,
        match.regex,
        (match.prefix or "/").rstrip("/"),
        [(name.lower().encode(), value.encode(errors="surrogateescape")) for name, value in match.headers.items()],
        match.methods or _METHODS.get(route.action_name),
        action.rewrite if action else None,
        bool(match.form_fields),
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


def _path_rest(row: _Row, path: str) -> str | None:
    if row.path is not None:
        return "" if path == row.path else None
    if row.regex is not None:
        return "" if row.regex.fullmatch(path) else None
    prefix = row.prefix
    if path == prefix:
        return ""
    size = len(prefix)
    return path[size + 1 :] if path.startswith(prefix) and path.startswith("/", size) else None


def _rewrite(row: _Row, rewrite: str, path: str, plain: str) -> str:
    """Return the path to send upstream: `rewrite` applied to it."""
    match = row.route.match
    if match.path is not None:
        return rewrite
    if match.regex is not None:
        found = match.regex.fullmatch(plain)
        return found.expand(rewrite) if found else path
    prefix = row.prefix
    # The prefix may be percent-encoded in the path: count its segments, not its characters.
    rest = path.split("/", prefix.count("/") + 1)[prefix.count("/") + 1 :]
    if not rest:
        return rewrite
    return rewrite.rstrip("/") + "/" + rest[0]

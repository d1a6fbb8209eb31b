"""Routing: the precedence follows HTTPRoute of the Gateway API."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.config import ConfigError, parse_config
from gateway.errors import Fault, FaultKind
from gateway.http import routing
from gateway.http.headers import Header, ReceivedHeaders
from gateway.http.routing import RouteTable, describe_match

NO_HEADERS = ReceivedHeaders([]).joined


def table(*matches: dict[str, Any], has_methods: bool = True) -> RouteTable:
    routes = [
        {"name": f"r{number}", "match": match, "fetch": {"allow": ["http://x/"]}}
        for number, match in enumerate(matches)
    ]
    for route in routes if has_methods else ():
        route["match"].setdefault("methods", ["GET", "POST"])  # type: ignore[attr-defined]  # a plain dict
    return RouteTable(parse_config(json.dumps({"routes": routes})).routes)


def find(routes: RouteTable, path: str, host: str = "h", method: str = "GET", **headers: str) -> str:
    received = ReceivedHeaders([(name.encode(), value.encode()) for name, value in headers.items()])
    return routes.find(host=host, path=path, method=method, header=received.joined)[0].route.name


def test_exact_path_precedes_longest_prefix_and_regex() -> None:
    routes = table({"regex": "/a.*"}, {"prefix": "/"}, {"prefix": "/a"}, {"prefix": "/a/b"}, {"path": "/a/b/c"})
    assert find(routes, "/a/b/c") == "r4"
    assert find(routes, "/a/b/d") == "r3"
    assert find(routes, "/a/b") == "r3"
    assert find(routes, "/a/x") == "r2"
    assert find(routes, "/ab") == "r1"
    assert find(table({"regex": "/a.*"}, {"path": "/x"}), "/abc") == "r0"


def test_host_precedes_path_and_exact_host_precedes_wildcard() -> None:
    routes = table({"path": "/a"}, {"host": "*.example"}, {"host": "x.example"})
    assert find(routes, "/a", host="x.example") == "r2"
    assert find(routes, "/a", host="y.example") == "r1"
    assert find(routes, "/a", host="example") == "r0"


def test_method_precedes_headers_and_headers_precede_order() -> None:
    routes = table(
        {"path": "/a", "methods": None},
        {"path": "/a", "methods": ["POST"]},
        {"path": "/a", "methods": ["POST"], "headers": {"X-Model": "big"}},
    )
    assert find(routes, "/a", method="GET") == "r0"
    assert find(routes, "/a", method="POST") == "r1"
    assert find(routes, "/a", method="POST", **{"x-model": "big"}) == "r2"
    assert find(routes, "/a", method="POST", **{"x-model": "big", "X-Model": "small"}) == "r1"


def test_percent_encoded_unreserved_characters_match() -> None:
    routes = table({"prefix": "/model-1/"})
    assert find(routes, "/%6dodel%2D1/x") == "r0"
    with pytest.raises(Fault):
        find(routes, "/model-1%2Fx")


def test_rest_is_the_path_after_the_prefix() -> None:
    found = table({"prefix": "/files/"}).find(host="h", path="/files//a/../b%2F", method="GET", header=NO_HEADERS)[0]
    assert found.rest == "/a/../b%2F"
    assert found.path == "/files//a/../b%2F"


@pytest.mark.parametrize(
    "path",
    [
        "/pub/../admin",
        "/pub/%2e%2e/admin",
        "/pub/%252e%252e/admin",
        "/pub/..;/admin",
        "/pub\\..\\admin",
        "/pub/..%5cadmin",
        "/pub/..%2fadmin",
        "/x/../admin",
        "//admin",
        "/admin%2fx",
        "/admin;v=1/x",
        "/x/..%00/admin",
        "/pub/../elsewhere",
    ],
)
def test_path_that_leads_to_another_route_once_it_is_resolved_is_refused(path: str) -> None:
    routes = table({"prefix": "/"}, {"prefix": "/pub"}, {"prefix": "/admin", "methods": ["POST"]})
    with pytest.raises(Fault) as caught:
        find(routes, path, method="POST")
    assert caught.value.kind is FaultKind.BAD_TARGET


def test_path_that_climbs_out_of_the_only_route_is_refused() -> None:
    routes = table({"prefix": "/pub/"})
    for path in ("/pub/../x", "/pub/a/..%2f../x", "/pub/..;/x"):
        with pytest.raises(Fault) as caught:
            find(routes, path)
        assert caught.value.kind is FaultKind.BAD_TARGET


def test_path_that_stays_on_its_route_is_passed_as_sent() -> None:
    routes = table({"prefix": "/"}, {"prefix": "/pub/"}, {"path": "/exact//../x"}, {"regex": "/v1/[^/]+"})
    for path, name in {
        "/pub/a/../b": "r1",
        "/pub//a;v=1": "r1",
        "/pub/https://h/%2e": "r1",
        "/a/../b//c": "r0",
        "/exact//../x": "r2",
    }.items():
        assert find(routes, path) == name
    assert find(table({"regex": "/v1/[^/]+"}), "/v1/a%2Fb") == "r0"


def test_wrong_method_is_405_with_all_allowed_methods() -> None:
    routes = table({"path": "/a", "methods": ["PUT"]}, {"path": "/a", "methods": ["POST"]})
    with pytest.raises(Fault) as caught:
        find(routes, "/a", method="GET")
    assert caught.value.kind is FaultKind.METHOD_NOT_ALLOWED
    assert caught.value.headers == ((b"Allow", b"POST, PUT"),)


def test_match_is_described_in_one_line() -> None:
    routes = table({"host": "h", "path": "/a", "headers": {"x": "y"}}, {"regex": "/b+"}, {})
    assert [describe_match(route) for route in routes.routes] == [
        "GET|POST, host h, path /a, x: y",
        "GET|POST, prefix /",
        "GET|POST, regex /b+",
    ]


def forward(match: dict[str, Any], rewrite: str | None) -> RouteTable:
    route = {"name": "r", "match": match, "forward": {"upstream": "u", "rewrite": rewrite}}
    config = {"upstreams": {"u": {"endpoints": ["http://x"]}}, "routes": [route]}
    return RouteTable(parse_config(json.dumps(config)).routes)


@pytest.mark.parametrize(
    ("match", "rewrite", "path", "expected"),
    [
        ({"path": "/v1/t"}, None, "/v1/t", "/v1/t"),
        ({"path": "/v1/t"}, "/t", "/v1/t", "/t"),
        ({"prefix": "/v1"}, "/", "/v1/x//y/../z", "/x//y/../z"),
        ({"prefix": "/v1"}, "/api/", "/v1", "/api/"),
        ({"prefix": "/v1/"}, "/api", "/%76%31/x", "/api/x"),
        ({}, "/api", "/x", "/api/x"),
        ({"regex": r"/m/(\w+)"}, r"/run/\1", "/m/a", "/run/a"),
    ],
)
def test_path_is_rewritten_for_the_upstream(
    match: dict[str, Any], rewrite: str | None, path: str, expected: str
) -> None:
    assert forward(match, rewrite).find(host="h", path=path, method="BREW", header=NO_HEADERS)[0].path == expected


def test_routes_with_form_fields_are_returned_up_to_the_first_without() -> None:
    routes = table(
        {"path": "/a"},
        {"path": "/a", "form_fields": {"model": "whisper-*"}},
        {"path": "/a", "form_fields": {"model": "*", "size": "big"}},
        {"prefix": "/"},
    )
    found = routes.find(host="h", path="/a", method="GET", header=NO_HEADERS)
    assert [each.route.name for each in found] == ["r2", "r1", "r0"]
    assert "form field model=whisper-*" in describe_match(found[1].route)
    alone = table({"path": "/a", "form_fields": {"model": "x"}}).find(
        host="h", path="/a", method="GET", header=NO_HEADERS
    )
    assert [each.route.name for each in alone] == ["r0"]


HOSTS = [None, "a.example", "b.a.example", "*.example", "*.a.example"]
PATHS = ["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/b"]
CONDITIONS = st.one_of(
    st.sampled_from(PATHS).map(lambda path: {"path": path}),
    st.sampled_from(PATHS).map(lambda path: {"prefix": path}),
    st.sampled_from(["/a.*", "/.*b", "/a"]).map(lambda regex: {"regex": regex}),
)
MATCHES = st.builds(
    lambda condition, host, methods, headers: {
        **condition,
        **({"host": host} if host else {}),
        "methods": methods,
        **({"headers": headers} if headers else {}),
    },
    CONDITIONS,
    st.sampled_from(HOSTS),
    st.sampled_from([None, ["GET"], ["POST"]]),
    st.sampled_from([None, {"X-Model": "big"}]),
)
HEADERS = ReceivedHeaders([(b"x-model", b"big")]).joined


def find_one_by_one(routes: RouteTable, host: str, path: str, method: str) -> tuple[list[str], set[str]]:
    """Return the names of the routes that match, and methods that would, by looking at every route."""
    allowed: set[str] = set()
    for route in routes.routes:
        match, pattern = route.match, route.match.host
        if pattern is not None and pattern.startswith("*."):
            is_host = host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
        else:
            is_host = pattern is None or pattern == host
        if match.path is not None:
            is_path = path == match.path
        elif match.regex is not None:
            is_path = match.regex.fullmatch(path) is not None
        else:
            prefix = (match.prefix or "/").rstrip("/")
            is_path = path == prefix or path.startswith(prefix + "/")
        methods = match.methods or ("GET", "HEAD")
        if is_host and is_path:
            if method in methods:
                return [route.name], allowed
            allowed |= set(methods)
    return [], allowed


@given(
    st.lists(MATCHES, min_size=1, max_size=8, unique_by=str),
    st.sampled_from(["a.example", "b.a.example", "c.example", ".example", "example", "*.example", "", "x"]),
    st.sampled_from([*PATHS, "/a/b/", "/a/bc", "/c", "//", "/a//b"]),
    st.sampled_from(["GET", "POST"]),
)
def test_route_is_the_one_that_looking_at_every_route_finds(
    matches: list[dict[str, Any]], host: str, path: str, method: str
) -> None:
    try:
        routes = table(*({**match} for match in matches), has_methods=False)
    except ConfigError:
        # A route that is never reached.
        assume(False)
    found, allowed = routes._match(host, path, path, method, HEADERS)
    assert ([each.route.name for each in found], allowed) == find_one_by_one(routes, host, path, method)


@pytest.mark.parametrize("key", ["path", "prefix", "host"])
def test_few_of_many_routes_are_looked_at(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up was linear in the routes: with 20,000 it took milliseconds, at every request."""
    count = 0

    def count_rows(row: Any, path: str) -> str | None:
        nonlocal count
        count += 1
        return path_rest(row, path)

    path_rest = routing._path_rest
    monkeypatch.setattr(routing, "_path_rest", count_rows)
    matches = [{"host": f"h{number}.example"} if key == "host" else {key: f"/p/{number}"} for number in range(500)]
    routes = table(*matches, {"prefix": "/"})
    assert find(routes, "/p/123", host="h123.example") == "r123"
    assert find(routes, "/p/none", host="h.example") == "r500"
    assert count <= 4


def look_up(routes: RouteTable, method: str, target: str, *headers: tuple[bytes, bytes]) -> str:
    return routes.look_up((1, 1), method, target, ReceivedHeaders(headers)).candidates[0].route.name


def test_request_is_found_alike_each_time() -> None:
    routes = table(
        {"path": "/a", "methods": ["GET"]}, {"path": "/a", "methods": ["POST"]}, {"host": "b", "prefix": "/"}
    )
    for _ in range(2):
        assert look_up(routes, "GET", "/a", (b"Host", b"h")) == "r0"
        assert look_up(routes, "POST", "/a?b", (b"host", b"h")) == "r1"
        assert look_up(routes, "GET", "/a", (b"Host", b"B:80")) == "r2"
        with pytest.raises(Fault, match="No route"):
            look_up(routes, "GET", "/b", (b"Host", b"h"))
        with pytest.raises(Fault, match="both Transfer-Encoding"):
            look_up(routes, "GET", "/a", (b"Host", b"h"), (b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"1"))
        assert routes.look_up((1, 1), "OPTIONS", "*", ReceivedHeaders([(b"Host", b"h")])).candidates == ()


def test_request_is_found_by_its_headers_where_a_route_has_some() -> None:
    routes = table({"path": "/a", "headers": {"X-Model": "big"}}, {"path": "/a"})
    for _ in range(2):
        assert look_up(routes, "GET", "/a", (b"Host", b"h"), (b"X-Model", b"big")) == "r0"
        assert look_up(routes, "GET", "/a", (b"Host", b"h")) == "r1"


def test_few_and_short_requests_are_remembered() -> None:
    routes = table({"prefix": "/"})
    for number in range(1100):
        assert look_up(routes, "GET", f"/{number}", (b"Host", b"h")) == "r0"
    assert len(routes.known) <= 1024
    routes = table({"prefix": "/"})
    assert look_up(routes, "GET", "/" + "a" * 600, (b"Host", b"h")) == "r0"
    assert not routes.known


@pytest.mark.parametrize("hosts", [[], [(b"Host", b"a"), (b"Host", b"b")]], ids=["none", "two"])
def test_request_without_exactly_one_host_is_refused_after_one_with_an_empty_host(hosts: list[Header]) -> None:
    routes = table({"prefix": "/"})
    assert look_up(routes, "GET", "/", (b"Host", b"")) == "r0"
    with pytest.raises(Fault, match=f"has {len(hosts)} Host headers"):
        look_up(routes, "GET", "/", *hosts)

"""Routing: the precedence follows HTTPRoute of the Gateway API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.config import parse_config
from gateway.errors import Fault, FaultKind
from gateway.http.headers import ReceivedHeaders
from gateway.http.routing import RouteTable, describe_match

NO_HEADERS = ReceivedHeaders([]).joined


def table(*matches: dict[str, Any]) -> RouteTable:
    routes = [
        {"name": f"r{number}", "match": match, "fetch": {"allow": ["http://x/"]}}
        for number, match in enumerate(matches)
    ]
    for route in routes:
        route["match"].setdefault("methods", ["GET", "POST"])  # type: ignore[attr-defined]  # a plain dict
    return RouteTable(parse_config(json.dumps({"routes": routes})).routes)


def find(routes: RouteTable, path: str, host: str = "h", method: str = "GET", **headers: str) -> str:
    received = ReceivedHeaders((name.encode(), value.encode()) for name, value in headers.items())
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

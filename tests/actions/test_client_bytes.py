"""Names and values from clients may hold any byte; one that cannot be passed on is a 400, never a 500."""

from __future__ import annotations

from typing import Any

import pytest

from tests.peers import OK, RawUpstream, form, post, problem_of, responding, run_gateway, split_response

BODY = form(('name="n%FF"', b"1"), ('name="f"; filename="a%FF.bin"', b"data")).replace(b"%FF", b"\xff")


def config(upstream: str, action: dict[str, Any]) -> dict[str, Any]:
    ((name, keys),) = action.items()
    route = {"name": "r", "match": {"prefix": "/"}, name: {"upstream": "up", **keys}}
    return {"upstreams": {"up": {"endpoints": [upstream]}}, "routes": [route]}


@pytest.mark.parametrize("action", [{"forward": {"body": "raw"}}, {"split": {"body": "raw"}}])
async def test_name_of_a_form_field_that_is_not_utf8_cannot_go_upstream_in_a_query(action: dict[str, Any]) -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(config(upstream.url, action)) as gateway:
        problem = problem_of(await gateway.request(post(BODY)))
        assert (problem["status"], problem["code"]) == (400, "bad_multipart")
        assert "UTF-8" in problem["detail"]
        assert not upstream.received.endswith(b"data")


@pytest.mark.parametrize(
    "action",
    [
        {"forward": {}},
        {"split": {}},
        {"forward": {"body": "raw", "form_fields": {"send": "headers"}}},
        {"split": {"body": "raw", "form_fields": {"send": "none"}, "filename_header": "X-Name"}},
    ],
)
async def test_other_names_that_are_not_utf8_are_passed_on(action: dict[str, Any]) -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(config(upstream.url, action)) as gateway:
        assert split_response(await gateway.request(post(BODY)))[0] == 200
        assert b"data" in upstream.received

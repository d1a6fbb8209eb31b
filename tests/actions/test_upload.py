"""Checks common to all actions with a request body."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.peers import OK, RawUpstream, post, problem_of, responding, run_gateway, split_response


@pytest.mark.new_connection(reason="no connection may be opened")
@pytest.mark.parametrize("action", ["forward", "split", "store"])
async def test_empty_form_is_refused_before_a_request_is_sent(action: str, tmp_path: Path) -> None:
    """It once reached the upstream as a form, and store responded with 201."""
    async with RawUpstream(responding(OK)) as upstream:
        keys: dict[str, Any] = {"directory": str(tmp_path)} if action == "store" else {"upstream": "up"}
        route = {"name": "r", "match": {"prefix": "/"}, action: keys}
        async with run_gateway({"upstreams": {"up": {"endpoints": [upstream.url]}}, "routes": [route]}) as gateway:
            assert problem_of(await gateway.request(post(b"")))["code"] == "bad_multipart"
            assert not upstream.wires
            assert not os.listdir(tmp_path)


async def test_empty_form_passes_where_forms_are_not_read() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        route = {"name": "r", "match": {"prefix": "/"}, "forward": {"upstream": "up", "multipart": "opaque"}}
        async with run_gateway({"upstreams": {"up": {"endpoints": [upstream.url]}}, "routes": [route]}) as gateway:
            assert split_response(await gateway.request(post(b"")))[0] == 200

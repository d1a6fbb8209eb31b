"""An exchange leaves no reference cycle: its memory is freed when it ends, without the garbage collector."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from gateway.downstream import Exchange
from tests.peers import RawUpstream, form, forward_config, post, responding, run_gateway

FILE = 'name="f"; filename="a.bin"'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000
GET = b"GET /a.bin HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
FORM = post(form((FILE, b"x" * 300_000)))


def exchange_count() -> int:
    # isinstance would read `__class__` of lazy objects in other libraries and load them.
    return sum(type(each) is Exchange for each in gc.get_objects())


def with_action(action: dict[str, Any], upstream: str) -> dict[str, Any]:
    route = {"name": "r", "match": {"prefix": "/"}, **action}
    return {"upstreams": {"up": {"endpoints": [upstream]}}, "routes": [route]}


@pytest.mark.parametrize("kind", ["get", "form", "raw", "unwrapped", "split", "store", "files"])
async def test_exchange_is_freed_when_it_ends(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x" * 300_000)

    async with RawUpstream(responding(OK)) as upstream:
        store = {"directory": str(tmp_path), "if_exists": "replace"}
        config, request = {
            "get": (forward_config(upstream.url), GET),
            "form": (forward_config(upstream.url), FORM),
            "raw": (forward_config(upstream.url), post(b"x" * 300_000, content_type="x/y")),
            "unwrapped": (with_action({"forward": {"upstream": "up", "body": "raw"}}, upstream.url), FORM),
            "split": (with_action({"split": {"upstream": "up"}}, upstream.url), FORM),
            "store": (with_action({"store": store}, upstream.url), FORM),
            "files": (with_action({"files": {"directory": str(tmp_path)}}, upstream.url), GET),
        }[kind]
        async with run_gateway(config) as gateway:
            await gateway.request(request)
            gc.collect()
            # Exchanges of other tests may still be referenced by the tracebacks of expected exceptions.
            before = exchange_count()
            gc.disable()
            try:
                for number in (2, 3, 4):
                    assert await gateway.request(request)
                    await gateway.wait_log_line(number)
                # The task of the last exchange may not have ended yet.
                assert exchange_count() <= before + 1
            finally:
                gc.enable()

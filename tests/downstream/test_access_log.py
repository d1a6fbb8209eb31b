"""The level of an exchange's line in the access log: by whose fault it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.peers import OK, RawUpstream, Wire, form, forward_config, post, responding, run_gateway

GET = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
NOTHING = "http://127.0.0.1:1"


async def level_of(config: dict[str, Any], request: bytes = GET) -> tuple[str, str]:
    """Return level and blame of the line of a request."""
    async with run_gateway(config) as gateway:
        await gateway.request(request)
        line = await gateway.wait_log_line()
        return line["level"], line["blame"]


async def test_exchange_without_a_fault_and_fault_of_a_client_are_info() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        config = forward_config(upstream.url)
        assert await level_of(config) == ("info", "none")
        assert await level_of(config, b"GET / HTTP/1.1\r\n\r\n") == ("info", "client")
        assert await level_of(config, post(b"no form")) == ("info", "client")
        failing = forward_config(upstream.url, match={"path": "/other"})
        assert await level_of(failing) == ("info", "client")


async def test_fault_of_an_upstream_is_a_warning() -> None:
    """Every line was `info`, a 502 too."""
    assert await level_of(forward_config(NOTHING)) == ("warning", "upstream")

    async def cut(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(OK[:-1])
        await wire.close()

    async with RawUpstream(cut) as upstream:
        assert await level_of(forward_config(upstream.url)) == ("warning", "upstream")


async def test_failed_file_of_a_split_is_a_warning() -> None:
    config = forward_config(NOTHING)
    del config["routes"][0]["forward"]
    config["routes"][0]["split"] = {"upstream": "up"}
    assert await level_of(config, post(form(('name="f"; filename="a"', b"x")))) == ("warning", "upstream")


async def test_fault_of_the_gateway_is_a_warning(tmp_path: Path) -> None:
    config = {"routes": [{"name": "r", "match": {"prefix": "/"}, "store": {"directory": str(tmp_path / "in")}}]}
    (tmp_path / "in").mkdir()
    async with run_gateway(config) as gateway:
        (tmp_path / "in").rmdir()
        await gateway.request(post(b"x", content_type="x/y", target="/a"))
        line = await gateway.wait_log_line()
        assert (line["level"], line["blame"]) == ("warning", "gateway")


@pytest.mark.expected_log("gateway", "bug in exchange", reason="the test makes one")
async def test_bug_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.actions.forward.make_request_head", lambda *_, **__: 1 / 0)
    assert await level_of(forward_config(NOTHING)) == ("error", "gateway")

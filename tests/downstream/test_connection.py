"""A client connection before its first request."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.peers import OK, TIMEOUT_SECONDS, RawUpstream, Wire, forward_config, responding, run_gateway


async def fail_on_request(_: Wire) -> None:
    raise AssertionError("a request without a whole head reached the upstream")


@pytest.mark.parametrize("head_start", [b"", b"GET / HTTP/1.1\r\nHo"])
async def test_client_that_sends_no_whole_head_in_time_is_disconnected(
    monkeypatch: pytest.MonkeyPatch, head_start: bytes
) -> None:
    monkeypatch.setattr("gateway.downstream.connection.KEEPALIVE_SECONDS", 0.05)
    async with RawUpstream(fail_on_request) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(head_start)
        assert await client.read_to_end() == b""
        await client.close()


async def test_client_that_sends_its_head_slowly_gets_no_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.downstream.connection.KEEPALIVE_SECONDS", 0.1)
    async with RawUpstream(fail_on_request) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(b"GET / HTTP/1.1\r\nX-Slow: ")
        closed = asyncio.create_task(client.read_to_end())
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not closed.done():
                with contextlib.suppress(ConnectionError):
                    await client.send(b"a")
                await asyncio.wait([closed], timeout=0.02)
        assert await closed == b""
        await client.close()


async def test_ipv4_client_of_a_listener_on_all_ipv6_addresses_is_known_by_its_ipv4_address() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        for trusted, forwarded in ((["127.0.0.0/8"], "1.2.3.4, 127.0.0.1"), ([], "127.0.0.1")):
            config = forward_config(upstream.url, top={"listen": "[::]:0", "trusted_proxies": trusted})
            async with run_gateway(config) as gateway:
                await gateway.request(
                    b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
                )
                head = bytes(upstream.wires[-1].received)
                assert f"X-Forwarded-For: {forwarded}\r\n".encode() in head
                assert b'for=127.0.0.1;host="gw"' in head
                assert (await gateway.wait_log_line())["client"] == "127.0.0.1"

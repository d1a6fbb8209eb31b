"""Expect: 100-continue. The gateway sends 100 only when route, limits, capacity and sink are ready for the body."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    Wire,
    forward_config,
    problem_of,
    responding,
    run_gateway,
    split_response,
)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def head(length: int, target: str = "/", version: str = "1.1", method: str = "POST") -> bytes:
    line = f"{method} {target} HTTP/{version}\r\n"
    return f"{line}Host: gw\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n".encode()


async def test_accepted_expectation_gets_100_then_the_response_and_keeps_the_connection() -> None:
    # An upload on the direct lane closes the connection. Outside these tests a body this short stays on the copy lane.
    config = forward_config("http://127.0.0.1:9", top={"lanes": "copy"})
    async with RawUpstream(responding(OK)) as upstream:
        config["upstreams"]["up"]["endpoints"] = [upstream.url]
        await _send_two(config, upstream)


async def _send_two(config: dict[str, Any], upstream: RawUpstream) -> None:
    async with run_gateway(config) as gateway:
        client = await gateway.connect()
        for _ in range(2):
            await client.send(head(5))
            assert await client.read_head() == CONTINUE
            await client.send(b"hello")
            assert split_response(await client.read_head())[0] == 200
            assert await client.read_exactly(2) == b"ok"
        await client.close()
        assert b"expect" not in upstream.received.lower()
        assert len(upstream.wires) == 1


async def test_body_sent_without_waiting_gets_no_100() -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(head(5) + b"hello")
        assert split_response(await client.read_head())[0] == 200
        await client.close()


async def test_refused_upstream_is_502_without_100_and_the_connection_closes_at_once() -> None:
    async with run_gateway(forward_config("http://127.0.0.1:9")) as gateway:
        response = await gateway.request(head(1000))
        assert problem_of(response)["code"] == "connect_refused"


async def test_declared_length_over_the_limit_is_413_without_100() -> None:
    async with run_gateway(forward_config("http://127.0.0.1:9", limits={"max_body": 10})) as gateway:
        response = await gateway.request(head(11))
        assert problem_of(response)["status"] == 413


async def test_unknown_route_is_404_without_100() -> None:
    async with run_gateway(forward_config("http://127.0.0.1:9", match={"path": "/a"})) as gateway:
        assert problem_of(await gateway.request(head(11, "/b")))["status"] == 404


async def test_no_100_while_waiting_for_a_slot() -> None:
    release = asyncio.Event()

    async def hold(wire: Wire) -> None:
        await wire.read_head()
        await release.wait()
        await wire.send(OK)
        await responding(OK)(wire)

    config = forward_config("", upstream_keys={"max_in_flight": 1, "max_queued": 0})
    async with RawUpstream(hold) as upstream:
        config["upstreams"]["up"]["endpoints"] = [upstream.url]
        async with run_gateway(config) as gateway:
            first = await gateway.connect()
            await first.send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
            await asyncio.wait_for(upstream.connected.wait(), TIMEOUT_SECONDS)
            response = await gateway.request(head(1000))
            status, headers, _ = split_response(response)
            assert status == 503
            assert headers["retry-after"] == "1"
            release.set()
            assert split_response(await first.read_head())[0] == 200
            await first.close()


async def test_store_sends_100_only_if_its_directory_exists(tmp_path: Path) -> None:
    directory = tmp_path / "in"
    directory.mkdir()
    config = {"routes": [{"name": "s", "match": {"prefix": "/"}, "store": {"directory": str(directory)}}]}
    async with run_gateway(config) as gateway:
        client = await gateway.connect()
        await client.send(head(5, "/a.txt", method="PUT"))
        assert await client.read_head() == CONTINUE
        await client.send(b"hello")
        assert split_response(await client.read_head())[0] == 201
        await client.close()
        (directory / "a.txt").unlink()
        directory.rmdir()
        response = await gateway.request(head(5, "/a.txt", method="PUT"))
        assert problem_of(response)["code"] == "disk_unavailable"


async def test_expectation_in_http_1_0_is_ignored() -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        response = await gateway.request(head(5, version="1.0") + b"hello")
        assert split_response(response)[0] == 200


async def test_unknown_expectation_is_417() -> None:
    async with run_gateway(forward_config("http://127.0.0.1:9")) as gateway:
        response = await gateway.request(head(5).replace(b"100-continue", b"miracles"))
        assert problem_of(response)["status"] == 417

"""Capacity slots of an upstream, and the choice of the next endpoint when one refuses or fails."""

from __future__ import annotations

import asyncio

import pytest

from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    Wire,
    forward_config,
    problem_of,
    responding,
    responding_in_halves,
    run_gateway,
    split_response,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"


async def test_slot_is_held_until_the_response_ends() -> None:
    release = asyncio.Event()
    slow = responding_in_halves(b"wx", release, b"yz")
    keys = {"max_in_flight": 1, "max_queued": 1, "queue_timeout": "5s"}
    async with RawUpstream(slow) as upstream, run_gateway(forward_config(upstream.url, upstream_keys=keys)) as gateway:
        first = await gateway.connect()
        await first.send(GET)
        await first.read_until(b"wx")
        second = await gateway.connect()
        await second.send(GET)
        await wait_until(lambda: gateway.stats.upstreams["up"].queue_length)
        refused = await gateway.request(GET)
        assert problem_of(refused)["code"] == "queue_full"
        assert len(upstream.wires) == 1
        release.set()
        assert await first.read_to_end() == b"yz"
        assert (await second.read_to_end()).endswith(b"wxyz")
        await first.close()
        await second.close()


async def test_wait_for_a_slot_is_limited() -> None:
    keys = {"max_in_flight": 1, "queue_timeout": "100ms"}

    async def send_no_response(wire: Wire) -> None:
        await wire.read_to_end()

    async with (
        RawUpstream(send_no_response) as upstream,
        run_gateway(forward_config(upstream.url, upstream_keys=keys)) as gateway,
    ):
        first = await gateway.connect()
        await first.send(GET)
        await asyncio.wait_for(upstream.connected.wait(), TIMEOUT_SECONDS)
        assert problem_of(await gateway.request(GET))["code"] == "queue_timeout"
        await first.close()


async def test_slot_of_a_client_that_disconnected_goes_to_the_next_request() -> None:
    keys = {"max_in_flight": 1}
    connection_count = 0

    async def script(wire: Wire) -> None:
        nonlocal connection_count
        connection_count += 1
        if connection_count == 1:
            await wire.read_to_end()
        else:
            await responding(OK)(wire)

    async with (
        RawUpstream(script) as upstream,
        run_gateway(forward_config(upstream.url, upstream_keys=keys)) as gateway,
    ):
        first = await gateway.connect()
        await first.send(GET)
        await asyncio.wait_for(upstream.connected.wait(), TIMEOUT_SECONDS)
        waiting = [await gateway.connect() for _ in range(2)]
        for client in waiting:
            await client.send(GET)
        await wait_until(lambda: gateway.stats.upstreams["up"].queue_length == 2)
        await waiting[0].close()
        await first.close()
        assert split_response(await waiting[1].read_to_end())[0] == 200
        await waiting[1].close()


async def test_request_goes_to_the_next_endpoint_when_one_refuses_the_connection() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(["http://127.0.0.1:9", upstream.url])) as gateway:
            for _ in range(4):
                request = b"POST / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody"
                assert (await gateway.request(request)).endswith(b"ok")
            assert gateway.stats.upstreams["up"].retries["connect_refused"] == 2


async def test_round_robin_alternates_between_endpoints() -> None:
    async with RawUpstream(responding(OK)) as one, RawUpstream(responding(OK)) as two:
        async with run_gateway(forward_config([one.url, two.url])) as gateway:
            for _ in range(6):
                await gateway.request(GET)
            assert bytes(one.wires[0].received).count(b"GET /") == 3
            assert bytes(two.wires[0].received).count(b"GET /") == 3


@pytest.mark.new_connection(reason="on a kept one it is sent twice")
async def test_request_is_sent_once_if_the_upstream_closes_without_a_response() -> None:
    """aiohttp retries idempotent requests, also on new connections. A PUT of 10 GB must not be sent twice."""

    async def close_without_response(wire: Wire) -> None:
        await wire.read_head()
        await wire.close()

    async with RawUpstream(close_without_response) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        assert problem_of(await gateway.request(GET))["code"] == "upstream_closed"
        assert len(upstream.wires) == 1


async def test_kept_connection_closed_by_the_upstream_is_not_used_again() -> None:
    async def respond_and_close(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(OK)
        await wire.close()

    async with RawUpstream(respond_and_close) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        for count in range(1, 6):
            assert (await gateway.request(GET)).endswith(b"ok")
            assert len(upstream.wires) == count


@pytest.mark.expected_log("gateway.upstream", "is down", reason="the endpoint fails its checks")
async def test_endpoint_that_fails_its_health_checks_gets_no_requests() -> None:
    async def respond_503(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")

    keys = {"health": {"path": "/healthz", "interval": "20ms", "fails": 2}}
    async with RawUpstream(respond_503) as bad, RawUpstream(responding(OK)) as good:
        async with run_gateway(forward_config([bad.url, good.url], upstream_keys=keys)) as gateway:
            await wait_until(lambda: not (gateway.stats.upstreams["up"].endpoints[bad.url].is_up))
            for _ in range(4):
                assert (await gateway.request(GET)).endswith(b"ok")
            assert gateway.stats.upstreams["up"].endpoints[good.url].is_up

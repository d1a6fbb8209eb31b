"""Which numbers a request changes: at its upstream, in the queue, and where it fails."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from pathlib import Path
from typing import Any

from gateway.errors import Blame
from gateway.observe.stats import RouteStats, UpstreamStats
from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    RunningGateway,
    Wire,
    form,
    forward_config,
    post,
    read_request,
    responding,
    run_gateway,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
UNAVAILABLE = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
FORM = form(('name="a"; filename="a"', b"x"), ('name="b"; filename="b"', b"y"))


def upstream_of(gateway: RunningGateway) -> UpstreamStats:
    return gateway.stats.upstreams["up"]


def requests_of(gateway: RunningGateway, url: str) -> dict[int | str, int]:
    """Return the requests to an endpoint by code, without those that are 0."""
    return +Counter(upstream_of(gateway).endpoints[url].requests)


def faults_of(gateway: RunningGateway) -> dict[str, int]:
    return +Counter(gateway.stats.routes["r"].faults)


def failures_of(gateway: RunningGateway) -> dict[Blame, int]:
    return +Counter(gateway.stats.routes["r"].failures)


async def test_request_is_counted_by_the_status_of_its_endpoint() -> None:
    async with RawUpstream(responding(OK)) as good, run_gateway(forward_config(good.url)) as gateway:
        for _ in range(2):
            await gateway.request(GET)
        assert requests_of(gateway, good.url) == {200: 2}
        assert not failures_of(gateway)
        assert not faults_of(gateway)


async def test_upstream_that_responds_with_5xx_is_to_blame_though_its_response_is_passed_on() -> None:
    async with RawUpstream(responding(UNAVAILABLE)) as busy, run_gateway(forward_config(busy.url)) as gateway:
        await gateway.request(GET)
        line = await gateway.wait_log_line()
        assert (line["status"], line["blame"]) == (503, "none")
        assert requests_of(gateway, busy.url) == {503: 1}
        assert failures_of(gateway) == {Blame.UPSTREAM: 1}
        assert not faults_of(gateway)


async def test_request_without_a_body_that_finds_no_upstream_is_a_failure_by_code() -> None:
    url = "http://127.0.0.1:9"
    async with run_gateway(forward_config(url)) as gateway:
        await gateway.request(GET)
        assert requests_of(gateway, url) == {"connect_refused": 1}
        assert failures_of(gateway) == {Blame.UPSTREAM: 1}
        assert faults_of(gateway) == {"connect_refused": 1}
        assert upstream_of(gateway).endpoints[url].in_flight == 0


async def test_client_that_leaves_before_the_response_cancels_its_request() -> None:
    async def never(wire: Wire) -> None:
        await read_request(wire)
        await asyncio.Event().wait()

    async with RawUpstream(never) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(GET)
        endpoint = upstream_of(gateway).endpoints[upstream.url]
        await wait_until(lambda: endpoint.in_flight == 1)
        await wait_until(lambda: upstream.received.endswith(b"\r\n\r\n"))
        await client.close()
        await gateway.wait_log_line()
        assert requests_of(gateway, upstream.url) == {"cancelled": 1}
        assert endpoint.in_flight == 0
        assert failures_of(gateway) == {Blame.CLIENT: 1}
        assert upstream_of(gateway).response_seconds.counts == [0] * 19


async def test_every_failed_file_of_a_split_is_counted_and_the_exchange_once() -> None:
    async with RawUpstream(responding(UNAVAILABLE)) as busy, run_gateway(_split(busy.url)) as gateway:
        await gateway.request(post(FORM))
        assert requests_of(gateway, busy.url) == {503: 2}
        assert failures_of(gateway) == {Blame.UPSTREAM: 1}
        assert not faults_of(gateway)
    async with run_gateway(_split("http://127.0.0.1:9")) as gateway:
        await gateway.request(post(FORM))
        assert failures_of(gateway) == {Blame.UPSTREAM: 1}
        assert faults_of(gateway) == {"connect_refused": 2}


def _split(url: str) -> dict[str, Any]:
    return {
        "upstreams": {"up": {"endpoints": [url]}},
        "routes": [{"name": "r", "match": {"prefix": "/"}, "split": {"upstream": "up"}}],
    }


async def test_service_time_is_from_the_end_of_the_request_and_only_new_connections_are_timed() -> None:
    has_request, may_respond = asyncio.Event(), asyncio.Event()

    async def script(wire: Wire) -> None:
        while True:
            await read_request(wire)
            has_request.set()
            await may_respond.wait()
            await wire.send(OK)

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        stats = upstream_of(gateway)
        client = await gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 2\r\n\r\na")
        await wait_until(lambda: stats.endpoints and stats.endpoints[upstream.url].in_flight)
        assert sum(stats.response_seconds.counts) == 0
        await client.send(b"b")
        await asyncio.wait_for(has_request.wait(), TIMEOUT_SECONDS)
        may_respond.set()
        await client.read_until(b"ok")
        await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
        await client.read_until(b"ok")
        await client.close()
        assert sum(stats.response_seconds.counts) == 2
        assert sum(stats.connect_seconds.counts) == 1


async def test_early_response_has_no_service_time() -> None:
    async def script(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(UNAVAILABLE)

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 2\r\n\r\na")
        await client.read_head()
        await client.close()
        await gateway.wait_log_line()
        assert requests_of(gateway, upstream.url) == {503: 1}
        assert sum(upstream_of(gateway).response_seconds.counts) == 0


async def test_slots_and_the_seconds_in_the_queue_are_those_of_exchanges_that_waited() -> None:
    may_respond = asyncio.Event()

    async def script(wire: Wire) -> None:
        while True:
            await read_request(wire)
            await may_respond.wait()
            await wire.send(OK)

    keys = {"max_in_flight": 1, "max_queued": 1}
    async with (
        RawUpstream(script) as upstream,
        run_gateway(forward_config(upstream.url, upstream_keys=keys)) as gateway,
    ):
        stats = upstream_of(gateway)
        first = asyncio.create_task(gateway.request(GET))
        await wait_until(lambda: stats.endpoints[upstream.url].in_flight)
        second = asyncio.create_task(gateway.request(GET))
        await wait_until(lambda: stats.queue_length)
        assert (await gateway.request(GET)).startswith(b"HTTP/1.1 503")
        assert sum(stats.queue_seconds.counts) == 0
        may_respond.set()
        await asyncio.gather(first, second)
        assert stats.slots == 1
        assert sum(stats.queue_seconds.counts) == 1
        assert faults_of(gateway) == {"queue_full": 1}
        assert failures_of(gateway) == {Blame.GATEWAY: 1}
    assert UpstreamStats("up").slots == math.inf


async def test_connections_are_active_with_an_exchange_and_idle_without() -> None:
    may_respond = asyncio.Event()

    async def script(wire: Wire) -> None:
        await read_request(wire)
        await may_respond.wait()
        await wire.send(OK)

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        silent, asking = await gateway.connect(), await gateway.connect()
        await asking.send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
        await wait_until(lambda: gateway.stats.routes["r"].in_flight)
        gateway.gateway.refresh_stats()
        assert gateway.stats.connections == {"active": 1, "idle": 1}
        may_respond.set()
        await asking.read_until(b"ok")
        await gateway.wait_log_line()
        await asking.close()
        await silent.close()
        await wait_until(lambda: not gateway.gateway._traffic.open_connections)
        gateway.gateway.refresh_stats()
        assert gateway.stats.connections == {"active": 0, "idle": 0}


def test_series_of_failures_exist_before_the_first() -> None:
    route = RouteStats("r")
    assert route.failures == {Blame.CLIENT: 0, Blame.UPSTREAM: 0, Blame.GATEWAY: 0}
    assert {"disk_full", "queue_full", "bug", "connect_refused"} <= route.faults.keys()
    assert "body_too_large" not in route.faults
    assert all(outcome in transfer.outcomes for transfer in route.transfers.values() for outcome in route.part_outcomes)


async def test_client_fault_is_blamed_on_the_client(tmp_path: Path) -> None:
    config = {"routes": [{"name": "r", "match": {"prefix": "/"}, "files": {"directory": str(tmp_path)}}]}
    async with run_gateway(config) as gateway:
        await gateway.request(GET.replace(b"GET /", b"GET /missing"))
        assert failures_of(gateway) == {Blame.CLIENT: 1}
        assert faults_of(gateway) == {"file_not_found": 1}

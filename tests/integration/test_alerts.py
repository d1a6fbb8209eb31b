"""Alerts in a real Prometheus: one gateway is broken for each, which fires its alert and no other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config, ConfigError, Problem
from gateway.downstream import Exchange
from gateway.errors import Fault, FaultKind
from gateway.http.routing import RouteMatch
from tests.peers import (
    OK,
    RawUpstream,
    RunningGateway,
    Wire,
    form,
    forward_config,
    post,
    responding,
    run_gateway,
    wait_until,
)
from tests.prometheus import run_prometheus
from tests.workers.processes import run_processes

#: A port that refuses connections.
CLOSED = "http://127.0.0.1:9"
GET = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
FORM = form(('name="a"; filename="a"', b"x"), ('name="b"; filename="b"', b"y"))
UNAVAILABLE = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
HEALTH = {"health": {"path": "/healthz", "interval": "100ms", "fails": 1}}
#: Windows of 10 minutes and less are as many seconds; the longest is that of a stall: 5 s without a byte, for 5 s.
TIMEOUT_SECONDS = 40.0
#: Breaks one gateway; what it opened is closed with the stack.
Break = Callable[[RunningGateway, contextlib.AsyncExitStack], Awaitable[None]]


async def never(wire: Wire) -> None:
    """Read everything, and send no response."""
    while await wire.read_some():
        pass


async def request_once(gateway: RunningGateway, _stack: contextlib.AsyncExitStack) -> None:
    await gateway.request(GET)


async def request_many(gateway: RunningGateway, _stack: contextlib.AsyncExitStack) -> None:
    """Serve some requests, among them a client's mistake."""
    for _ in range(20):
        await gateway.request(GET)
        await gateway.request(post(FORM))
    await gateway.request(GET.replace(b"HTTP/1.1", b"HTTP/1.1 "))


async def split_form(gateway: RunningGateway, _stack: contextlib.AsyncExitStack) -> None:
    await gateway.request(post(FORM))
    assert gateway.log[-1]["upload"] == "complete"


async def do_nothing(_gateway: RunningGateway, _stack: contextlib.AsyncExitStack) -> None:
    """Do nothing: health checks fail by themselves."""


async def eject_again_and_again(gateway: RunningGateway, _stack: contextlib.AsyncExitStack) -> None:
    endpoint = gateway.stats.upstreams["up"].endpoints[CLOSED]
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while endpoint.ejections < 4:
            await gateway.request(GET)


async def refuse_one(gateway: RunningGateway, stack: contextlib.AsyncExitStack) -> None:
    """Let one request take the only slot, and another find the queue full."""
    first = await hold_request(gateway, stack)
    assert (await gateway.request(GET)).startswith(b"HTTP/1.1 503")
    await first.close()


async def hold_two(gateway: RunningGateway, stack: contextlib.AsyncExitStack) -> None:
    """Let one request hold the only slot, and another wait for it."""
    await hold_request(gateway, stack)
    client = await gateway.connect()
    stack.push_async_callback(client.close)
    await client.send(GET)
    await wait_until(lambda: gateway.stats.upstreams["up"].queue_length)


async def hold_request(gateway: RunningGateway, stack: contextlib.AsyncExitStack) -> Wire:
    client = await gateway.connect()
    stack.push_async_callback(client.close)
    await client.send(GET)
    await wait_until(lambda: any(each.in_flight for each in gateway.stats.upstreams["up"].endpoints.values()))
    return client


async def stall(gateway: RunningGateway, stack: contextlib.AsyncExitStack) -> None:
    """Send a part of a body and no more."""
    client = await gateway.connect()
    stack.push_async_callback(client.close)
    await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 100000\r\n\r\n" + b"x" * 1000)


async def fill_disk(gateway: RunningGateway, _stack: contextlib.AsyncExitStack) -> None:
    """Declare more than the disk has: refused before the first byte, so there is no transfer."""
    head = b"PUT /a HTTP/1.1\r\nHost: gw\r\nExpect: 100-continue\r\nContent-Length: 9000000000000000\r\n\r\n"
    assert (await gateway.request(head)).startswith(b"HTTP/1.1 507")


async def send_file(gateway: RunningGateway, _stack: contextlib.AsyncExitStack) -> None:
    assert (await gateway.request(post(FORM))).startswith(b"HTTP/1.1 503")


async def refuse_reload(gateway: RunningGateway, _stack: contextlib.AsyncExitStack) -> None:
    def load() -> Config:
        raise ConfigError([Problem("gateway.yaml", 1, "routes", "broken")])

    await gateway.gateway.reload(load)


class Broken:
    """An action that fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def __call__(self, _exchange: Exchange, _matched: RouteMatch) -> None:
        raise self._error

    async def close(self) -> None:
        pass


async def meet_bug(gateway: RunningGateway, _stack: contextlib.AsyncExitStack) -> None:
    gateway.gateway._handler.runtime.actions["r"] = Broken(ZeroDivisionError())
    await gateway.request(GET)


async def run_out_of_descriptors(gateway: RunningGateway, _stack: contextlib.AsyncExitStack) -> None:
    """Respond as without a descriptor: the test's own are those of the gateway."""
    gateway.gateway._handler.runtime.actions["r"] = Broken(Fault(FaultKind.OUT_OF_DESCRIPTORS, "none left"))
    await gateway.request(GET)


async def drop_log_lines(gateway: RunningGateway, _stack: contextlib.AsyncExitStack) -> None:
    gateway.stats.dropped_log_lines = lambda: 3


async def delay_worker(gateway: RunningGateway, _stack: contextlib.AsyncExitStack) -> None:
    gateway.stats.stale_workers = 1


async def stop(gateway: RunningGateway, _stack: contextlib.AsyncExitStack) -> None:
    await gateway.gateway.stop()


def store_config(directory: Path, **keys: Any) -> dict[str, Any]:
    limits = {"max_body": "unlimited", "max_part": "unlimited"}
    route = {"name": "r", "match": {"prefix": "/"}, "store": {"directory": str(directory)}, "limits": limits}
    return {"routes": [{**route, **keys}]}


def split_config(url: str) -> dict[str, Any]:
    return {
        "upstreams": {"up": {"endpoints": [url]}},
        "routes": [{"name": "r", "match": {"prefix": "/"}, "split": {"upstream": "up"}}],
    }


def cases(good: str, bad: str, silent: str, directory: Path) -> dict[str, tuple[dict[str, Any], Break, set[str]]]:
    """Return, by name, the config of a gateway, what breaks it, and the alerts that this must fire."""
    one_slot = {"max_in_flight": 1, "max_queued": 0}
    ejection = {"ejection": {"failures": 1, "duration": "10ms"}}
    scan = [{"scan": {"clamd": "unix:/nowhere", "timeout": "1s"}}]
    patient = {"idle": "off"}
    return {
        "busy": (forward_config(good), request_many, set()),
        "upstream-down": (forward_config(CLOSED), request_once, {"GatewayUpstreamFailing"}),
        "upstream-5xx": (forward_config(bad), request_once, {"GatewayUpstreamFailing"}),
        "split-fails": (split_config(bad), split_form, {"GatewayUpstreamFailing"}),
        "no-endpoint": (forward_config(CLOSED, upstream_keys=HEALTH), do_nothing, {"GatewayUpstreamDown"}),
        "one-endpoint": (forward_config([good, CLOSED], upstream_keys=HEALTH), do_nothing, {"GatewayEndpointDown"}),
        "ejected": (
            forward_config([good, CLOSED], upstream_keys=ejection),
            eject_again_and_again,
            {"GatewayEndpointEjected"},
        ),
        "queue-full": (forward_config(silent, upstream_keys=one_slot), refuse_one, {"GatewayQueueFull"}),
        "queueing": (
            forward_config(silent, upstream_keys={"max_in_flight": 1, "queue_timeout": "off"}),
            hold_two,
            {"GatewayQueueing"},
        ),
        "stalled": (forward_config(silent, timeouts=patient), stall, {"GatewayTransfersStalled"}),
        "disk-full": (store_config(directory), fill_disk, {"GatewayDiskFailing"}),
        "no-scanner": (store_config(directory, filters=scan), send_file, {"GatewayScannerFailing"}),
        "reload": (forward_config(good), refuse_reload, {"GatewayConfigRefused"}),
        "bug": (forward_config(good), meet_bug, {"GatewayBug"}),
        "exhausted": (forward_config(good), run_out_of_descriptors, {"GatewayExhausted"}),
        "log": (forward_config(good), drop_log_lines, {"GatewayLogLinesDropped"}),
        "stale": (forward_config(good), delay_worker, {"GatewayWorkersStale"}),
        "stopped": (forward_config(good), stop, {"GatewayDown"}),
    }


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.expected_log("gateway.upstream", "is down|is ejected", reason="endpoints are down on purpose")
@pytest.mark.expected_log("gateway", "the config stays as it was", reason="a reload is refused on purpose")
@pytest.mark.expected_log("gateway", "bug in exchange", reason="an action is broken on purpose")
async def test_each_failure_fires_its_alert_and_no_other(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        good = await stack.enter_async_context(RawUpstream(responding(OK)))
        bad = await stack.enter_async_context(RawUpstream(responding(UNAVAILABLE)))
        silent = await stack.enter_async_context(RawUpstream(never))
        every = cases(good.url, bad.url, silent.url, tmp_path)
        gateways = {
            name: await stack.enter_async_context(run_gateway(config)) for name, (config, _, _) in every.items()
        }
        targets = {name: gateway.ops_url.removeprefix("http://") for name, gateway in gateways.items()}
        # More failures than one: those of a gateway with workers are added up by another process.
        workers = await stack.enter_async_context(run_processes(tmp_path, forward_config(CLOSED)))
        await workers.wait_started()
        targets["workers"] = f"127.0.0.1:{workers.ops_port}"
        prometheus = await stack.enter_async_context(run_prometheus(tmp_path, targets))
        clients = await stack.enter_async_context(contextlib.AsyncExitStack())
        for name, (_, break_it, _) in every.items():
            await break_it(gateways[name], clients)
        await workers.request(GET)
        # What a killed worker counted in its last second is lost.
        failed = 'gateway_request_failures_total{instance="workers",blame="upstream"} > 0'
        await prometheus.wait_for(failed, 1, TIMEOUT_SECONDS)
        os.kill(workers.workers[0], signal.SIGKILL)
        expected = {(name, alert) for name, (_, _, alerts) in every.items() for alert in alerts}
        expected |= {("workers", "GatewayUpstreamFailing"), ("workers", "GatewayWorkerDied")}
        fired = 'count by (instance, alertname) (max_over_time(ALERTS{alertstate="firing"}[10m]))'
        await prometheus.wait_for(fired, len(expected), TIMEOUT_SECONDS)
        seen = {(each["metric"]["instance"], each["metric"]["alertname"]) for each in await prometheus.query(fired)}
        assert seen == expected

"""Passive health: what counts as a failure of an endpoint, when it is ejected, and when it is readmitted."""

from __future__ import annotations

import functools
import json
import logging
from typing import Any

import pytest

from gateway.config import Config
from gateway.config.load import parse_config
from gateway.config.upstream import Ejection
from gateway.config.values import Endpoint
from gateway.observe.log import JsonFormatter
from gateway.upstream.balancing import EndpointState
from gateway.upstream.ejection import EjectionRecord, may_eject
from tests.ops.test_ops import fetch
from tests.peers import (
    OK,
    RawUpstream,
    RunningGateway,
    Script,
    Wire,
    forward_config,
    read_request,
    responding,
    run_gateway,
    split_response,
    wait_until,
)

POST = b"POST / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Length: 5\r\n\r\nsmall"
EJECTED = pytest.mark.expected_log("gateway.upstream", "is ejected", reason="the endpoint fails its requests")


def status_script(status: int) -> Script:
    return responding(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())


def config_of(endpoints: list[str], **keys: Any) -> dict[str, Any]:
    ejection = {"failures": 3, "duration": "1h", **keys.pop("ejection", {})}
    return forward_config(endpoints, upstream_keys={"ejection": ejection, **keys})


def parsed(keys: dict[str, Any]) -> Config:
    return parse_config(json.dumps({"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}, **keys}))


def ejections(gateway: RunningGateway, upstream: RawUpstream) -> int:
    return gateway.stats.upstreams["up"].endpoints[upstream.url].ejections


def is_healthy(gateway: RunningGateway, upstream: RawUpstream) -> bool:
    return gateway.stats.upstreams["up"].endpoints[upstream.url].is_up


async def send(gateway: RunningGateway, count: int) -> list[int]:
    return [split_response(await gateway.request(POST))[0] for _ in range(count)]


def states(count: int, *, ejected: int = 0, down: int = 0) -> list[EndpointState]:
    found = [EndpointState(Endpoint("http", f"h{number}", 80)) for number in range(count)]
    for state in found[1 : 1 + ejected]:
        state.is_ejected = True
    for state in found[1 + ejected : 1 + ejected + down]:
        state.is_up = False
    return found


@pytest.mark.parametrize(
    ("endpoints", "max_percent", "may"),
    [
        (states(1), 1.0, False),
        (states(2), 0.5, True),
        (states(2, ejected=1), 1.0, False),
        (states(2, down=1), 1.0, False),
        (states(4, ejected=1), 0.5, True),
        (states(4, ejected=2), 0.5, False),
        (states(4, ejected=2), 0.75, True),
        (states(4, ejected=2, down=1), 1.0, False),
        (states(10), 0.05, True),
        (states(10, ejected=1), 0.19, False),
    ],
)
def test_last_healthy_endpoint_and_more_than_the_share_are_not_ejected(
    endpoints: list[EndpointState], max_percent: float, may: bool
) -> None:
    config = Ejection(failures=5, duration=30.0, max_percent=max_percent)
    assert may_eject(endpoints[0], endpoints, config) is may


def test_ejections_grow_while_they_follow_each_other() -> None:
    record, now = EjectionRecord(), 1000.0
    seconds = []
    for pause in (0, 10, 29, 31, 95, *[0] * 12):
        now += pause
        seconds.append(record.start(30, now))
        now += seconds[-1]
        record.end(now)
    assert seconds == [30, 60, 90, 90, 30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300, 300]


@EJECTED
async def test_endpoint_is_ejected_after_failures_in_a_row_and_readmitted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.upstream")
    async with RawUpstream(status_script(503)) as bad, RawUpstream(responding(OK)) as good:
        async with run_gateway(config_of([bad.url, good.url], ejection={"duration": "20ms"})) as gateway:
            text = (await fetch(f"{gateway.ops_url}/metrics"))[2]
            assert f'gateway_upstream_ejections_total{{endpoint="{bad.url}",upstream="up"}} 0' in text
            assert await send(gateway, 5) == [503, 200, 503, 200, 503]
            await wait_until(lambda: ejections(gateway, bad) == 1)
            await wait_until(lambda: is_healthy(gateway, bad))
            assert ejections(gateway, good) == 0
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records if "keys" in record.__dict__]
    ejected, readmitted = lines
    reason = "3 requests in a row failed, the last with status 503"
    keys = {"upstream": "up", "endpoint": bad.url}
    assert ejected.items() >= {**keys, "event": "endpoint_ejected", "reason": reason, "level": "warning"}.items()
    assert ejected["message"] == f"endpoint {bad.url} of upstream up is ejected for 0.02 s: {reason}"
    assert readmitted.items() >= {**keys, "event": "endpoint_readmitted", "reason": "after 0.02 s"}.items()


@EJECTED
async def test_ejected_endpoint_gets_no_requests() -> None:
    async with RawUpstream(status_script(502)) as bad, RawUpstream(responding(OK)) as good:
        async with run_gateway(config_of([bad.url, good.url])) as gateway:
            await send(gateway, 5)
            await wait_until(lambda: ejections(gateway, bad) == 1)
            assert not is_healthy(gateway, bad)
            assert await send(gateway, 10) == [200] * 10
            assert (await fetch(f"{gateway.ops_url}/readyz"))[0] == 200


async def close(wire: Wire) -> None:
    await read_request(wire)
    await wire.close()


async def cut(wire: Wire) -> None:
    await read_request(wire)
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab")
    await wire.close()


async def send_nothing(wire: Wire) -> None:
    await wire.read_to_end()


async def send_a_part(wire: Wire) -> None:
    await read_request(wire)
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab")
    await wire.read_to_end()


@EJECTED
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param(
            close,
            "upstream_closed",
            marks=pytest.mark.new_connection(reason="the close of a kept connection says nothing of its endpoint"),
        ),
        (cut, "response_incomplete"),
        (responding(b"junk\r\n\r\n"), "bad_response"),
        (send_nothing, "response_timeout"),
        (send_a_part, "upstream_idle"),
        (status_script(504), "status 504"),
    ],
    ids=["close", "cut", "junk", "no-response", "stall", "504"],
)
async def test_failure_of_an_endpoint_counts(script: Script, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    timeouts = {"response": "50ms", "idle": "50ms"}
    async with RawUpstream(script) as bad, RawUpstream(responding(OK)) as good:
        config = config_of([bad.url, good.url], ejection={"failures": 2}, timeouts=timeouts)
        async with run_gateway(config) as gateway:
            for _ in range(3):
                await gateway.request(POST)
            await wait_until(lambda: ejections(gateway, bad) == 1)
            assert f"2 requests in a row failed, the last with {reason}" in caplog.text


@EJECTED
async def test_endpoint_that_refuses_connections_is_ejected_and_no_request_fails() -> None:
    async with RawUpstream(responding(OK)) as good:
        bad = "http://127.0.0.1:9"
        async with run_gateway(config_of([bad, good.url])) as gateway:
            assert await send(gateway, 20) == [200] * 20
            assert gateway.stats.upstreams["up"].endpoints[bad].ejections == 1
            assert gateway.stats.upstreams["up"].retries["connect_refused"] == 3


@pytest.mark.parametrize("status", [200, 400, 413, 429, 500, 501, 507])
async def test_other_responses_do_not_count(status: int) -> None:
    async with RawUpstream(status_script(status)) as one, RawUpstream(responding(OK)) as two:
        async with run_gateway(config_of([one.url, two.url], ejection={"failures": 1})) as gateway:
            await send(gateway, 6)
            assert ejections(gateway, one) == 0


async def test_success_ends_the_row() -> None:
    numbers = iter(range(100))

    async def script(wire: Wire) -> None:
        while await read_request(wire):
            is_failure = next(numbers) % 3
            await wire.send(f"HTTP/1.1 {503 if is_failure else 200} X\r\nContent-Length: 0\r\n\r\n".encode())

    async with RawUpstream(script) as one, RawUpstream(responding(OK)) as two:
        async with run_gateway(config_of([one.url, two.url])) as gateway:
            await send(gateway, 30)
            assert ejections(gateway, one) == 0


@pytest.mark.new_connection(reason="each request is waited for by its connection")
async def test_clients_that_leave_do_not_count() -> None:
    async with RawUpstream(send_nothing) as one, RawUpstream(send_nothing) as two:
        async with run_gateway(config_of([one.url, two.url], ejection={"failures": 1})) as gateway:
            for number, beginning in enumerate((POST[:-2], POST) * 2):
                client = await gateway.connect()
                await client.send(beginning)
                await wait_until(lambda count=number: len(one.wires) + len(two.wires) == count + 1)  # type: ignore[misc]  # bound in the loop
                client.reset()
                await gateway.wait_log_line(number + 1)
            assert ejections(gateway, one) + ejections(gateway, two) == 0


async def test_refusals_of_the_gateway_do_not_count() -> None:
    async with RawUpstream(responding(OK)) as one, RawUpstream(responding(OK)) as two:
        config = config_of([one.url, two.url], ejection={"failures": 1})
        config["routes"][0]["limits"] = {"max_body": 3}
        async with run_gateway(config) as gateway:
            chunks = (
                b"POST / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"
            )
            for _ in range(4):
                response = await gateway.request(chunks, b"2\r\ncd\r\n0\r\n\r\n")
                assert split_response(response)[0] == 413
            assert ejections(gateway, one) + ejections(gateway, two) == 0


async def test_only_endpoint_is_never_ejected() -> None:
    async with RawUpstream(status_script(503)) as one:
        async with run_gateway(config_of([one.url], ejection={"failures": 1, "max_percent": 100})) as gateway:
            assert await send(gateway, 6) == [503] * 6
            assert ejections(gateway, one) == 0


@EJECTED
async def test_reload_keeps_ejections_of_endpoints_that_stay() -> None:
    async with RawUpstream(status_script(503)) as bad, RawUpstream(responding(OK)) as good:
        async with RawUpstream(responding(OK)) as new, run_gateway(config_of([bad.url, good.url])) as gateway:
            reload = gateway.gateway.reload
            await send(gateway, 5)
            await wait_until(lambda: ejections(gateway, bad) == 1)
            keys = config_of([new.url, bad.url, good.url], policy="least_requests")
            await reload(lambda: parsed(keys))
            assert not is_healthy(gateway, bad)
            assert ejections(gateway, bad) == 1
            assert await send(gateway, 9) == [200] * 9
            # Removed, it has no series; it comes back as a new one.
            await reload(lambda: parsed(config_of([good.url])))
            assert bad.url not in gateway.stats.upstreams["up"].endpoints
            await reload(lambda: parsed(config_of([bad.url, good.url])))
            assert is_healthy(gateway, bad)


@EJECTED
async def test_endpoint_is_readmitted_when_ejection_is_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.upstream")
    async with RawUpstream(status_script(503)) as bad, RawUpstream(responding(OK)) as good:
        async with run_gateway(config_of([bad.url, good.url])) as gateway:
            await send(gateway, 5)
            await wait_until(lambda: ejections(gateway, bad) == 1)
            await gateway.gateway.reload(functools.partial(parsed, forward_config([bad.url, good.url])))
            assert is_healthy(gateway, bad)
            assert "is readmitted: ejection was switched off" in caplog.text


@EJECTED
@pytest.mark.expected_log("gateway.upstream", "is down", reason="the endpoint fails its checks")
async def test_ejected_endpoint_that_comes_up_again_is_readmitted(caplog: pytest.LogCaptureFixture) -> None:
    """It was restarted: its failures are those of the process before."""
    caplog.set_level(logging.INFO, "gateway.upstream")
    current = 200

    async def script(wire: Wire) -> None:
        while True:
            head, _ = await read_request(wire)
            status = current if head.startswith(b"GET /healthz") else 503
            await wire.send(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())

    health = {"path": "/healthz", "interval": "10ms", "fails": 1}
    async with RawUpstream(script) as bad, RawUpstream(responding(OK)) as good:
        async with run_gateway(config_of([bad.url, good.url], health=health)) as gateway:
            await send(gateway, 5)
            await wait_until(lambda: ejections(gateway, bad) == 1)
            current = 500
            await wait_until(lambda: "is down" in caplog.text)
            assert not is_healthy(gateway, bad)
            current = 200
            await wait_until(lambda: is_healthy(gateway, bad))
            assert "is readmitted: its health checks pass again" in caplog.text

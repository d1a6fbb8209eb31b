"""Health checks: when an endpoint is up or down, what is logged of it, and checks that fail with a bug."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from typing import Any

import pytest

from gateway.config import Config, parse_config
from gateway.errors import Fault, FaultKind
from gateway.observe.log import JsonFormatter
from gateway.transfer import open_socket
from gateway.upstream import Resolver, health
from gateway.upstream.health import CheckHistory
from tests.peers import RawUpstream, RunningGateway, Script, Wire, forward_config, responding, run_gateway, wait_until

PASS = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
FAIL = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"
HEALTH = {"path": "/healthz", "interval": "10ms", "timeout": "5s", "fails": 2}


def config_of(url: str, **keys: Any) -> dict[str, Any]:
    return forward_config(url, upstream_keys={"health": {**HEALTH, **keys}})


def is_up(gateway: RunningGateway, url: str) -> bool:
    return gateway.stats.upstreams["up"].endpoints[url].is_up


def lines_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return what the log has about endpoints, as it is written to standard output."""
    records = [record for record in caplog.records if record.name == "gateway.upstream"]
    return [json.loads(JsonFormatter().format(record)) for record in records]


@pytest.mark.parametrize(
    ("results", "changes"),
    [
        ([False, False, False], [False, False, True]),
        ([False, False, True, False, False, False], [False, False, False, False, False, True]),
        ([False, False, False, True, True, False, False, False], [False, False, True, False, True, False, False, True]),
    ],
)
def test_endpoint_changes_after_checks_in_a_row(results: list[bool], changes: list[bool]) -> None:
    history = CheckHistory(passes=2, fails=3, is_up=True)
    assert [history.record(has_passed=result) for result in results] == changes


@pytest.mark.expected_log("gateway.upstream", "is down", reason="the endpoint fails its checks")
async def test_each_change_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.upstream")
    responses = [PASS]
    check_count = 0

    async def script(wire: Wire) -> None:
        nonlocal check_count
        await wire.read_head()
        check_count += 1
        await wire.send(responses[-1])

    async with RawUpstream(script) as upstream, run_gateway(config_of(upstream.url)) as gateway:
        await wait_until(lambda: check_count > 2)
        responses.append(FAIL)
        await wait_until(lambda: not is_up(gateway, upstream.url))
        count = check_count
        await wait_until(lambda: check_count > count + 3)
        responses.append(PASS)
        await wait_until(lambda: is_up(gateway, upstream.url))
    down, up = lines_of(caplog)
    keys = {"upstream": "up", "endpoint": upstream.url, "logger": "gateway.upstream"}
    message = f"endpoint {upstream.url} of upstream up"
    reason = "2 checks failed: status 503"
    assert down.items() >= {**keys, "event": "endpoint_down", "reason": reason, "level": "warning"}.items()
    assert down["message"] == f"{message} is down: {reason}"
    assert up.items() >= {**keys, "event": "endpoint_up", "reason": "1 check passed", "level": "info"}.items()
    assert up["message"] == f"{message} is up again: 1 check passed"


async def close(wire: Wire) -> None:
    await wire.read_head()


async def send_nothing(wire: Wire) -> None:
    await wire.read_to_end()


@pytest.mark.expected_log("gateway.upstream", "is down", reason="the endpoint fails its checks")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (close, "the connection was closed without a response"),
        (send_nothing, "no response within 0.05 s"),
        (responding(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"), "status 500"),
        (responding(b"junk\r\n\r\n"), "Bad status line"),
    ],
    ids=["closed", "timeout", "status", "junk"],
)
async def test_reason_says_what_is_wrong(script: Script, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    async def run(wire: Wire) -> None:
        await script(wire)
        await wire.close()

    async with RawUpstream(run) as upstream:
        async with run_gateway(config_of(upstream.url, fails=1, timeout="50ms")) as gateway:
            await wait_until(lambda: not is_up(gateway, upstream.url))
    assert reason in lines_of(caplog)[0]["reason"]


@pytest.mark.expected_log("gateway.upstream", "is down", reason="the endpoint fails its checks")
@pytest.mark.parametrize(
    ("url", "reason"),
    [("http://127.0.0.1:9", "1 check failed: connection refused"), ("http://a..b:80", "1 check failed: ")],
)
async def test_endpoint_that_cannot_be_connected_is_down(
    url: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A name that the idna codec refuses raised UnicodeError: it ended the checks of all endpoints."""
    async with RawUpstream(responding(PASS)) as other:
        config = config_of(url, fails=1)
        config["upstreams"]["up"]["endpoints"].append(other.url)
        async with run_gateway(config) as gateway:
            await wait_until(lambda: not is_up(gateway, url))
            assert is_up(gateway, other.url)
            assert reason in lines_of(caplog)[0]["reason"]


@pytest.mark.expected_log("gateway", "health checks of upstream up failed", reason="a bug in a check is logged")
@pytest.mark.expected_log("gateway.upstream", "is down", reason="the endpoint fails its checks")
async def test_checks_that_failed_with_a_bug_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """They ended for good, and the endpoint stayed as it was."""
    real, calls = health._check, 0

    async def fail_once(*arguments: Any) -> str | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("a bug")
        return await real(*arguments)

    monkeypatch.setattr(health, "_check", fail_once)
    monkeypatch.setattr("gateway.upstream.health._RESTART_SECONDS", 0)
    async with run_gateway(config_of("http://127.0.0.1:9")) as gateway:
        await wait_until(lambda: not is_up(gateway, "http://127.0.0.1:9"))


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_endpoint_stays_up_while_the_gateway_cannot_make_its_checks(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every endpoint was taken for down when the gateway ran out of descriptors."""
    failures = 0
    is_exhausted = False

    def open_or_fail(address: tuple[Any, ...]) -> socket.socket:
        nonlocal failures
        if is_exhausted:
            failures += 1
            raise OSError(error, os.strerror(error))
        return open_socket(address)

    monkeypatch.setattr(health, "open_socket", open_or_fail)
    async with RawUpstream(responding(PASS)) as upstream, run_gateway(config_of(upstream.url)) as gateway:
        await upstream.connected.wait()
        is_exhausted = True
        await wait_until(lambda: failures > 4)
        assert is_up(gateway, upstream.url)
        is_exhausted = False
        count = len(upstream.wires)
        await wait_until(lambda: len(upstream.wires) > count)
        assert is_up(gateway, upstream.url)


async def test_endpoint_stays_up_while_there_is_no_descriptor_to_look_up_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """getaddrinfo(3) reports that the name does not resolve."""
    failures = 0
    is_exhausted = False

    def descriptor_fault() -> Fault | None:
        nonlocal failures
        failures += 1
        return Fault(FaultKind.OUT_OF_DESCRIPTORS, "none")

    async def resolve(self: Resolver, host: str, *rest: Any, **named: Any) -> Any:
        if is_exhausted:
            raise socket.gaierror(socket.EAI_NONAME, "no name")
        return await found(self, host, *rest, **named)

    found = Resolver.resolve
    monkeypatch.setattr(Resolver, "resolve", resolve)
    monkeypatch.setattr(health, "descriptor_fault", descriptor_fault)
    async with RawUpstream(responding(PASS)) as upstream:
        url = upstream.url.replace("127.0.0.1", "localhost")
        async with run_gateway(config_of(url)) as gateway:
            await upstream.connected.wait()
            is_exhausted = True
            await wait_until(lambda: failures > 4)
            assert is_up(gateway, url)


@pytest.mark.expected_log("gateway.upstream", "is down", reason="the endpoint fails its checks")
async def test_state_of_an_endpoint_follows_its_checks_through_reloads() -> None:
    responses = [PASS]

    async def script(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(responses[-1])
        await wire.close()

    def make_config(number: int) -> Config:
        keys = {"health": {**HEALTH, "interval": "5ms"}, "timeouts": {"idle": f"{60 + number}s"}}
        fixed = {"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}, "drain_timeout": "5s"}
        return parse_config(json.dumps({**fixed, **forward_config(upstream.url, upstream_keys=keys)}))

    async with RawUpstream(script) as upstream, run_gateway(config_of(upstream.url)) as gateway:
        for number in range(20):
            responses.append(FAIL if number % 2 else PASS)
            # Each has a watch of its own; the one before may be in the middle of a check.
            await gateway.gateway.reload(lambda number=number: make_config(number))  # type: ignore[misc]  # a default
            if number % 3 == 0:
                await wait_until(lambda: is_up(gateway, upstream.url) is (responses[-1] is PASS))
        responses.append(PASS)
        await wait_until(lambda: is_up(gateway, upstream.url))

"""Reload: a changed config replaces the current one without an effect on exchanges in flight."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config, ConfigError, Problem
from gateway.config.load import parse_config
from gateway.downstream import Exchange
from gateway.filters import FilterProblem
from gateway.http.routing import RouteMatch
from tests.ops.test_ops import fetch, process
from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    Wire,
    forward_config,
    read_request,
    responding,
    responding_in_halves,
    run_gateway,
    split_response,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
PUT = b"PUT / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab"
KEPT_GET = b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n"
#: Matches no request of these tests.
ROUTE = {"name": "f", "match": {"path": "/only"}, "files": {"directory": "."}}
LISTEN: dict[str, Any] = {"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}}


def config_of(keys: dict[str, Any]) -> Config:
    return parse_config(json.dumps({**LISTEN, **keys}))


async def test_exchange_in_flight_ends_with_the_config_it_started_with() -> None:
    release = asyncio.Event()
    slow = responding_in_halves(b"old", release, b"way")
    async with RawUpstream(slow) as old, RawUpstream(responding(OK)) as new:
        async with run_gateway(forward_config(old.url)) as gateway:
            client = await gateway.connect()
            await client.send(GET)
            await client.read_until(b"old")
            await gateway.gateway.reload(lambda: config_of(forward_config(new.url)))
            assert split_response(await gateway.request(GET))[0] == 200
            assert new.received.startswith(b"GET / HTTP/1.1")
            # The old upstream is closed only after its last exchange has ended.
            assert not old.finished.is_set()
            release.set()
            assert await client.read_to_end() == b"way"
            await client.close()
            await old.wait_finished()


async def test_unchanged_upstream_keeps_its_connections() -> None:
    async def script(wire: Wire) -> None:
        while await wire.read_head():
            await wire.send(OK)

    async with RawUpstream(script) as upstream:
        async with run_gateway(forward_config(upstream.url)) as gateway:
            await gateway.request(GET)
            await gateway.gateway.reload(lambda: config_of(forward_config(upstream.url, limits={"max_body": 1})))
            await gateway.request(GET)
            assert len(upstream.wires) == 1
            assert split_response(await gateway.request(PUT))[0] == 413


class HeldAction:
    """An action whose connections take long to close, such as a mirror on a disk that does not answer."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def __call__(self, exchange: Exchange, matched: RouteMatch) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        await self.release.wait()


async def test_upstream_is_closed_while_a_config_before_that_shared_it_still_closes() -> None:
    """Each of the two configs left it to the other."""
    config = forward_config("http://127.0.0.1:1")
    async with run_gateway(config) as running:
        gateway, held = running.gateway, HeldAction()
        first = gateway._runtime
        first.actions["held"] = held
        await gateway.reload(lambda: config_of({**config, "max_connections": 7}))
        assert gateway._runtime.upstreams == first.upstreams
        await gateway.reload(lambda: config_of(forward_config("http://127.0.0.1:2")))
        connector = first.upstreams["up"]._client._connector
        try:
            await wait_until(lambda: connector.closed)
        finally:
            held.release.set()


async def test_kept_connection_of_a_client_uses_the_new_routes() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url)) as gateway:
            client = await gateway.connect()
            await client.send(KEPT_GET)
            await client.read_until(b"ok")
            await gateway.gateway.reload(lambda: config_of({"routes": [ROUTE]}))
            await client.send(KEPT_GET)
            assert b" 404 " in await client.read_head()
            await client.close()


@pytest.mark.expected_log("gateway", "the config stays as it was", reason="a refused reload is logged as an error")
@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"listen": "127.0.0.1:1"}, "listen"),
        ({"ops": {"listen": "127.0.0.1:1"}}, "ops.listen"),
    ],
)
async def test_config_that_needs_a_restart_changes_nothing(
    keys: dict[str, Any], where: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url)) as gateway:
            await gateway.gateway.reload(lambda: config_of({"routes": [ROUTE], **keys}))
            assert split_response(await gateway.request(GET))[0] == 200
            assert f"{where}: cannot change" in caplog.text
            assert gateway.stats.reloads == {"success": 0, "failure": 1}


@pytest.mark.expected_log("gateway", "the config stays as it was", reason="a refused reload is logged as an error")
async def test_invalid_config_changes_nothing_and_every_problem_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> Config:
        raise ConfigError([Problem("c.yaml", line, "routes", "wrong") for line in (3, 7)])

    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url)) as gateway:
            before = gateway.stats.configured_at
            await gateway.gateway.reload(load)
            assert split_response(await gateway.request(GET))[0] == 200
            assert "c.yaml:3: routes: wrong" in caplog.text
            assert "c.yaml:7: routes: wrong" in caplog.text
            text = (await fetch(f"{gateway.ops_url}/metrics"))[2]
            assert 'gateway_config_reloads_total{result="failure"} 1' in text
            assert gateway.stats.configured_at == before


async def test_counters_continue_and_removed_endpoints_have_no_series() -> None:
    async with RawUpstream(responding(OK)) as old, RawUpstream(responding(OK)) as new:
        async with run_gateway(forward_config(old.url)) as gateway:
            await gateway.request(GET)
            await gateway.gateway.reload(lambda: config_of(forward_config(new.url)))
            await gateway.request(GET)
            await gateway.wait_log_line(2)
            text = (await fetch(f"{gateway.ops_url}/metrics"))[2]
            assert 'code="200",method="GET",route="r"} 2' in text
            assert old.url not in text
            assert f'gateway_upstream_endpoint_up{{endpoint="{new.url}",upstream="up"}} 1' in text
            assert 'gateway_config_reloads_total{result="success"} 1' in text


async def test_changed_upstream_keeps_its_slots() -> None:
    """Each changed key made a second set of slots: an upstream with `max_in_flight: 1` got two exchanges at once."""
    release = asyncio.Event()
    slow = responding_in_halves(b"o", release, b"k")
    keys: dict[str, Any] = {"max_in_flight": 1}
    async with RawUpstream(slow) as upstream:
        async with run_gateway(forward_config(upstream.url, upstream_keys=keys)) as gateway:
            first = await gateway.connect()
            await first.send(GET)
            await first.read_until(b"\r\n\r\no")
            for number in range(2, 5):
                changed = {**keys, "queue_timeout": f"{number}m"}
                await gateway.gateway.reload(
                    functools.partial(config_of, forward_config(upstream.url, upstream_keys=changed))
                )
                waiting = await gateway.connect()
                await waiting.send(GET)
                await wait_until(lambda: gateway.stats.upstreams["up"].queue_length)
                assert len(upstream.wires) == 1
                await waiting.close()
                await wait_until(lambda: not gateway.stats.upstreams["up"].queue_length)
            await gateway.gateway.reload(
                lambda: config_of(forward_config(upstream.url, upstream_keys={**keys, "max_in_flight": 2}))
            )
            second = await gateway.connect()
            await second.send(GET)
            await second.read_until(b"\r\n\r\no")
            release.set()
            for client in (first, second):
                assert await client.read_to_end() == b"k"
                await client.close()


async def test_route_that_moved_to_another_upstream_counts_on() -> None:
    """Its counts began anew: exchanges in flight with the upstream before were not in flight any more."""
    release = asyncio.Event()
    slow = responding_in_halves(b"old", release, b"way")

    def config(upstream: str) -> dict[str, Any]:
        upstreams = {name: {"endpoints": [url]} for name, url in (("a", old.url), ("b", new.url))}
        return {**forward_config("", forward={"upstream": upstream}), "upstreams": upstreams}

    async with RawUpstream(slow) as old, RawUpstream(responding(OK)) as new:
        async with run_gateway(config("a")) as gateway:
            client = await gateway.connect()
            await client.send(GET)
            await client.read_until(b"old")
            await gateway.gateway.reload(lambda: config_of(config("b")))
            await gateway.request(GET)
            await gateway.wait_log_line()
            text = (await fetch(f"{gateway.ops_url}/metrics"))[2]
            assert 'gateway_requests_in_flight{route="r"} 1' in text
            assert 'gateway_transfer_bytes_total{direction="download",route="r",upstream="a"} 3' in text
            assert 'gateway_transfer_bytes_total{direction="download",route="r",upstream="b"} 2' in text
            release.set()
            assert await client.read_to_end() == b"way"
            await client.close()
            await wait_until(lambda: not gateway.gateway._retired)
            text = (await fetch(f"{gateway.ops_url}/metrics"))[2]
            assert 'gateway_requests_total{code="200",method="GET",route="r"} 2' in text
            assert 'gateway_requests_in_flight{route="r"} 0' in text
            assert 'route="r",upstream="a"' not in text


async def test_series_of_removed_names_end_after_their_last_exchange() -> None:
    """320 renames left 27 MiB of metrics."""
    release = asyncio.Event()
    slow = responding_in_halves(b"old", release, b"way")

    def renamed(number: int) -> dict[str, Any]:
        config = forward_config(upstream.url, name=f"r{number}", forward={"upstream": f"u{number}"})
        return {**config, "upstreams": {f"u{number}": config["upstreams"]["up"]}}

    async with RawUpstream(slow) as upstream, run_gateway(renamed(0)) as gateway:
        size = len((await fetch(f"{gateway.ops_url}/metrics"))[2])
        client = await gateway.connect()
        await client.send(GET)
        await client.read_until(b"old")
        for number in range(1, 30):
            await gateway.gateway.reload(functools.partial(config_of, renamed(number)))
        await wait_until(lambda: len(gateway.gateway._retired) == 1)
        text = (await fetch(f"{gateway.ops_url}/metrics"))[2]
        assert 'gateway_requests_in_flight{route="r0"} 1' in text
        assert 'gateway_requests_in_flight{route="r29"} 0' in text
        assert "r28" not in text
        release.set()
        assert await client.read_to_end() == b"way"
        await client.close()
        await wait_until(lambda: not gateway.gateway._retired)
        text = (await fetch(f"{gateway.ops_url}/metrics"))[2]
        assert "r0" not in text
        assert "u0" not in text
        assert len(text) < 2 * size
        assert set(gateway.gateway._resources.upstreams) == {"u29"}


@pytest.mark.expected_log("gateway", "the config stays as it was", reason="a refused reload is logged as an error")
@pytest.mark.parametrize("failure", [RuntimeError("out of order"), FilterProblem("no filter 'x'"), MemoryError()])
async def test_failure_while_a_config_is_applied_is_counted_and_changes_nothing(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A filter of a plug-in may raise anything when it is created. The reload failed without a count or a line."""

    def fail(*_: object) -> None:
        raise failure

    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url)) as gateway:
            keys = forward_config(upstream.url, name="new", forward={"upstream": "other"})
            config = config_of({**keys, "upstreams": {"other": keys["upstreams"]["up"]}})
            monkeypatch.setattr("gateway.runtime.make_filters", fail)
            await gateway.gateway.reload(lambda: config)
            assert gateway.stats.reloads == {"success": 0, "failure": 1}
            assert str(failure) in caplog.text
            assert split_response(await gateway.request(GET))[0] == 200
            assert set(gateway.stats.routes) == {"", "r"}
            assert set(gateway.gateway._resources.upstreams) == {"up"}


async def test_replaced_upstream_gets_no_health_checks() -> None:
    checked_upstreams: list[str] = []

    def script(name: str) -> Any:
        async def run(wire: Wire) -> None:
            await wire.read_head()
            checked_upstreams.append(name)
            await wire.send(OK)

        return run

    async with RawUpstream(script("old")) as old, RawUpstream(script("new")) as new:
        health = {"health": {"path": "/", "interval": "20ms"}}
        async with run_gateway(forward_config(old.url, upstream_keys=health)) as gateway:
            await wait_until(lambda: "old" in checked_upstreams)
            await gateway.gateway.reload(lambda: config_of(forward_config(new.url, upstream_keys=health)))
            await wait_until(lambda: "new" in checked_upstreams)
            checked_upstreams.clear()
            await wait_until(lambda: checked_upstreams.count("new") > 3)
            assert "old" not in checked_upstreams


@pytest.mark.slow
async def test_process_reloads_on_sighup(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    (tmp_path / "a").write_text("served")
    route = {"name": "f", "match": {"prefix": "/one/"}, "files": {"directory": str(tmp_path)}}
    config.write_text(json.dumps({**LISTEN, "routes": [route]}))

    async def status(port: int, target: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {target} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n".encode())
        response = await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS)
        writer.close()
        return response[9:12]

    async with process(config) as running:
        assert running.stdout is not None

        async def message() -> str:
            assert running.stdout is not None
            while True:
                line = json.loads(await asyncio.wait_for(running.stdout.readline(), TIMEOUT_SECONDS))
                if line["event"] == "message":
                    return str(line["message"])

        port = int((await message()).split(",")[0].rpartition(":")[2])
        assert await status(port, "/one/a") == b"200"
        config.write_text(json.dumps({**LISTEN, "routes": [{**route, "match": {"prefix": "/two/"}}]}))
        running.send_signal(signal.SIGHUP)
        assert await message() == "the config was replaced"
        assert [await status(port, target) for target in ("/one/a", "/two/a")] == [b"404", b"200"]
        config.write_text("routes: [")
        running.send_signal(signal.SIGHUP)
        assert "the config stays as it was" in await message()
        assert await status(port, "/two/a") == b"200"


def write_certificate(directory: Path, name: str) -> None:
    """Write a key and a self-signed certificate for this name."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    command += ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def served_certificate(port: int) -> bytes:
    """Return the certificate that the gateway sends to a client."""
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port)))


def tls_keys(directory: Path) -> dict[str, Any]:
    return {"routes": [ROUTE], "tls": {"certificate": str(directory / "cert.pem"), "key": str(directory / "key.pem")}}


@pytest.mark.slow
@pytest.mark.expected_log("gateway", "the config stays as it was", reason="TLS cannot be switched off by a reload")
async def test_renewed_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    await asyncio.to_thread(write_certificate, tmp_path, "first")
    keys = tls_keys(tmp_path)
    async with run_gateway(keys) as gateway:
        assert b"first" in await asyncio.to_thread(served_certificate, gateway.port)
        await asyncio.to_thread(write_certificate, tmp_path, "second")
        await gateway.gateway.reload(lambda: config_of(keys))
        assert b"second" in await asyncio.to_thread(served_certificate, gateway.port)
        await gateway.gateway.reload(lambda: config_of({"routes": [ROUTE]}))
        assert gateway.stats.reloads == {"success": 1, "failure": 1}


@pytest.mark.slow
@pytest.mark.expected_log("gateway", "the config stays as it was", reason="a key that does not match is refused")
async def test_certificate_without_its_key_leaves_the_previous_one_in_use(tmp_path: Path) -> None:
    """The key does not match the certificate. The TLS context in use must keep its own key and certificate."""
    await asyncio.to_thread(write_certificate, tmp_path, "first")
    keys = tls_keys(tmp_path)
    async with run_gateway(keys) as gateway:
        config, key = config_of(keys), (tmp_path / "key.pem").read_bytes()
        await asyncio.to_thread(write_certificate, tmp_path, "second")
        (tmp_path / "key.pem").write_bytes(key)
        await gateway.gateway.reload(lambda: config)
        assert gateway.stats.reloads == {"success": 0, "failure": 1}
        assert b"first" in await asyncio.to_thread(served_certificate, gateway.port)


@pytest.mark.slow
async def test_no_request_is_lost_during_reloads() -> None:
    body = os.urandom(700_000)

    async def script(wire: Wire) -> None:
        while await read_request(wire):
            await wire.send(OK)

    async with RawUpstream(script) as one, RawUpstream(script) as two:
        async with run_gateway({"lanes": "auto", **forward_config(one.url)}) as gateway:
            head = b"PUT / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
            is_ended = asyncio.Event()

            async def send_requests() -> list[int]:
                statuses = []
                while not is_ended.is_set():
                    statuses.append(split_response(await gateway.request(head, body))[0])
                return statuses

            sending = [asyncio.create_task(send_requests()) for _ in range(6)]
            for number in range(30):
                await gateway.wait_log_line(5 * number + 1)
                keys = forward_config((two, one)[number % 2].url)
                await gateway.gateway.reload(functools.partial(config_of, keys))
            is_ended.set()
            responses = [status for task in sending for status in await task]
            assert set(responses) == {200}
            assert one.wires
            assert two.wires
            assert gateway.stats.reloads["success"] == 30
            await wait_until(lambda: not gateway.gateway._retired)


@pytest.mark.slow
async def test_upstream_gets_one_exchange_at_a_time_during_reloads() -> None:
    """Every reload changes another key of the upstream, and so opens new connections to it."""
    in_flight, most = 0, 0

    async def script(wire: Wire) -> None:
        nonlocal in_flight, most
        while await read_request(wire):
            in_flight += 1
            most = max(most, in_flight)
            for _ in range(30):
                await asyncio.sleep(0)
            in_flight -= 1
            await wire.send(OK)

    def config(number: int) -> dict[str, Any]:
        keys = {"max_in_flight": 1, "queue_timeout": f"{60 + number}s", "timeouts": {"idle": f"{60 + number}s"}}
        return forward_config(upstream.url, upstream_keys=keys)

    async with RawUpstream(script) as upstream, run_gateway(config(0)) as gateway:
        is_ended = asyncio.Event()

        async def send_requests() -> set[int]:
            statuses = set()
            while not is_ended.is_set():
                statuses.add(split_response(await gateway.request(GET))[0])
            return statuses

        sending = [asyncio.create_task(send_requests()) for _ in range(8)]
        for number in range(1, 31):
            await gateway.wait_log_line(20 * number)
            await gateway.gateway.reload(functools.partial(config_of, config(number)))
        is_ended.set()
        assert [await task for task in sending] == [{200}] * 8
        assert most == 1
        assert gateway.stats.reloads["success"] == 30
        await wait_until(lambda: not gateway.gateway._retired)

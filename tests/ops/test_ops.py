"""The ops port (metrics, health, readiness), the start and stop of a gateway, and the access log."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.observe.stats import Direction, TransferStats
from tests.conftest import require_tool
from tests.leaks import stray_lines
from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    RunningGateway,
    form,
    forward_config,
    post,
    responding,
    run_gateway,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"


async def fetch(url: str, **headers: str) -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, response.headers["Content-Type"], await response.text()


async def sample(gateway: RunningGateway, name: str) -> float:
    """Return the value of one series of /metrics."""
    _, _, text = await fetch(gateway.ops_url + "/metrics")
    for line in text.splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"no series {name}")


def _has_moved(stats: TransferStats, size: int) -> bool:
    return stats.bytes_moved >= size


async def test_byte_counter_rises_during_an_upload() -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        series = 'gateway_transfer_bytes_total{direction="upload",route="r",upstream="up"}'
        client = await gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Length: 3000\r\n\r\n")
        seen: list[float] = []
        for _ in range(3):
            await client.send(b"x" * 1000)
            upload = gateway.stats.routes["r"].transfers[Direction.UPLOAD]
            await wait_until(functools.partial(_has_moved, upload, 1000 * len(seen) + 1000))
            seen.append(await sample(gateway, series))
        assert seen == [1000.0, 2000.0, 3000.0]
        await client.read_to_end()
        await client.close()


async def test_metrics_count_requests_transfers_and_parts() -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        body = form(("name=a", b"b"), ('name="f"; filename="x"', b"y" * 5000))
        await gateway.request(post(body))
        await gateway.request(GET.replace(b"GET", b"PROPFIND"))
        await gateway.request(b"nonsense\r\n\r\n")
        for series, expected in {
            'gateway_requests_total{code="200",method="POST",route="r"}': 1.0,
            'gateway_requests_total{code="200",method="other",route="r"}': 1.0,
            'gateway_requests_total{code="400",method="other",route=""}': 1.0,
            'gateway_transfers_total{direction="upload",outcome="complete",route="r"}': 1.0,
            'gateway_transfers_total{direction="download",outcome="complete",route="r"}': 2.0,
            'gateway_transfers_in_flight{direction="upload",route="r"}': 0.0,
            'gateway_transfer_bytes_total{direction="upload",route="r",upstream="up"}': float(len(body)),
            'gateway_transfer_size_bytes_bucket{direction="upload",le="16384.0",route="r"}': 1.0,
            'gateway_transfer_size_bytes_bucket{direction="upload",le="4096.0",route="r"}': 0.0,
            'gateway_transfer_size_bytes_sum{direction="upload",route="r"}': float(len(body)),
            'gateway_parts_total{kind="file",route="r"}': 1.0,
            'gateway_parts_total{kind="field",route="r"}': 1.0,
            'gateway_part_size_bytes_sum{route="r"}': 5001.0,
            'gateway_request_duration_seconds_count{route="r"}': 2.0,
            'gateway_time_to_first_byte_seconds_count{route="r"}': 2.0,
            'gateway_requests_in_flight{route="r"}': 0.0,
            'gateway_upstream_queue_length{upstream="up"}': 0.0,
            f'gateway_upstream_endpoint_up{{endpoint="{upstream.url}",upstream="up"}}': 1.0,
        }.items():
            assert await sample(gateway, series) == expected, series


async def test_metrics_are_openmetrics_if_accepted_and_valid_for_promtool() -> None:
    promtool = require_tool("promtool")
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        await gateway.request(post(form(('name="f"; filename="x"', b"y"))))
        _, kind, text = await fetch(gateway.ops_url + "/metrics", Accept="application/openmetrics-text")
        assert kind.startswith("application/openmetrics-text")
        assert text.endswith("# EOF\n")
        _, kind, text = await fetch(gateway.ops_url + "/metrics")
        assert kind.startswith("text/plain")
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            promtool, "check", "metrics", stdin=pipe, stdout=pipe, stderr=pipe
        )
        out, err = await process.communicate(text.encode())
        assert process.returncode == 0, (out + err).decode()


async def test_draining_gateway_is_healthy_but_not_ready() -> None:
    async with run_gateway(forward_config("http://127.0.0.1:9")) as gateway:
        assert (await fetch(gateway.ops_url + "/healthz"))[0] == 200
        assert (await fetch(gateway.ops_url + "/readyz"))[0] == 200
        gateway.gateway._handler.begin_drain()
        status, _, text = await fetch(gateway.ops_url + "/readyz")
        assert (status, text) == (503, "draining\n")


@pytest.mark.expected_log("gateway.upstream", "is down", reason="the endpoint fails its checks")
@pytest.mark.parametrize(
    ("actions", "status"),
    [
        ([{"forward": {"upstream": "down"}}, {"split": {"upstream": "down"}}], 503),
        ([{"forward": {"upstream": "down"}}, {"forward": {"upstream": "up"}}], 200),
        ([{"forward": {"upstream": "down"}}, {"files": {"directory": "."}}], 200),
        ([{"split": {"upstream": "down"}}, {"store": {"directory": "."}}], 200),
        ([{"split": {"upstream": "down"}}, {"fetch": {"allow": ["http://x/"]}}], 200),
    ],
)
async def test_gateway_is_ready_while_one_route_can_be_served(actions: list[dict[str, Any]], status: int) -> None:
    health = {"path": "/healthz", "interval": "10ms", "fails": 1, "timeout": "1s"}
    config = {
        "upstreams": {
            "down": {"endpoints": ["http://127.0.0.1:9"], "health": health},
            "up": {"endpoints": ["http://127.0.0.1:9"]},
        },
        "routes": [{"name": f"r{index}", "match": {"path": f"/{index}"}, **each} for index, each in enumerate(actions)],
    }
    async with run_gateway(config) as gateway:
        await wait_until(lambda: not all(each.is_up for each in gateway.stats.upstreams["down"].endpoints.values()))
        text = "ok\n" * (status == 200) + "upstream down: no healthy endpoint\n"
        assert (await fetch(gateway.ops_url + "/readyz"))[::2] == (status, text)


async def test_ops_paths_are_not_on_the_traffic_port() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, match={"path": "/x"})) as gateway:
            response = await gateway.request(GET.replace(b"GET /", b"GET /metrics"))
            assert response.startswith(b"HTTP/1.1 404")


@contextlib.asynccontextmanager
async def process(config: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `gateway run` as a process; kill it at the end, and check that it logged no unexpected line."""
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", "gateway", "run", "--config", str(config), *arguments]
    running = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, start_new_session=True)
    try:
        yield running
    finally:
        if running.returncode is None:
            os.killpg(running.pid, signal.SIGKILL)
        output = b"".join(await running.communicate())
    assert not list(stray_lines(output.decode()))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_process_stops_cleanly_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    config = tmp_path / "gateway.yaml"
    async with RawUpstream(responding(OK)) as upstream:
        settings = forward_config(upstream.url, top={"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}})
        config.write_text(json.dumps(settings))
        async with process(config) as running:
            assert running.stdout is not None
            line = json.loads(await asyncio.wait_for(running.stdout.readline(), TIMEOUT_SECONDS))
            port = int(line["message"].split(",")[0].rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 4\r\n\r\nab")
            await asyncio.wait_for(upstream.connected.wait(), TIMEOUT_SECONDS)
            running.send_signal(number)
            writer.write(b"cd")
            response = await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS)
            writer.close()
            assert response.startswith(b"HTTP/1.1 200 OK")
            out, err = await asyncio.wait_for(running.communicate(), TIMEOUT_SECONDS)
            assert running.returncode == 0
            assert err == b""
            exchange, *_, last = [json.loads(line) for line in out.splitlines()[-2:]]
            assert (exchange["event"], last["message"]) == ("exchange", "drain ended: no exchange is left")


@pytest.mark.slow
async def test_only_the_incomplete_upload_of_a_killed_gateway_is_removed_at_the_next_start(tmp_path: Path) -> None:
    directory, config = tmp_path / "uploads", tmp_path / "gateway.yaml"
    directory.mkdir()
    settings = {"routes": [{"name": "s", "match": {"prefix": "/"}, "store": {"directory": str(directory)}}]}
    listen = {"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}}
    config.write_text(json.dumps({**settings, **listen}))
    head, body = b"PUT /a HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Length: 900000\r\n\r\n", b"x" * 900_000

    async with process(config) as running:
        assert running.stdout is not None
        line = json.loads(await asyncio.wait_for(running.stdout.readline(), TIMEOUT_SECONDS))
        port = int(line["message"].split(",")[0].rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + body[:600_000])
        await wait_until(lambda: list(directory.glob(".*.part/*")))
        running.kill()
        await running.wait()
        writer.transport.abort()
        assert list(directory.glob(".*.part/*"))

    async with run_gateway(settings) as first:
        await wait_until(lambda: not list(directory.iterdir()))
        client = await first.connect()
        await client.send(head + body[:600_000])
        await wait_until(lambda: list(directory.iterdir()))
        stale = directory / f".{'0' * 32}.part"
        stale.mkdir()
        (stale / "0").write_text("left")
        async with run_gateway(settings):
            await wait_until(lambda: not stale.exists())
            await client.send(body[600_000:])
            assert (await client.read_to_end()).startswith(b"HTTP/1.1 201")
            await client.close()
        assert [path.name for path in directory.iterdir()] == ["a"]
        assert (directory / "a").read_bytes() == body


async def test_access_log_line_is_json_for_any_client_input() -> None:
    target = b'/a"b\\c' + b"x" * 600
    async with RawUpstream(responding(OK)) as upstream:
        config = forward_config(upstream.url, top={"trusted_proxies": ["127.0.0.0/8"]})
        async with run_gateway(config) as gateway:
            head = b"GET " + target + b" HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nX-Request-Id: a/b=c\r\n\r\n"
            await gateway.request(head)
            line = await gateway.wait_log_line()
    # The line was parsed by json.loads. The target is truncated and keeps its first bytes.
    assert len(line["target"]) == 512
    assert line["target"].startswith('/a"b\\c')
    assert line["request_id"] == "a/b=c"
    # In the order in which they were waited on. A response that came at once was not waited for.
    legs = [leg for leg in line["wait_seconds"] if leg != "upstream_read"]
    assert legs == ["downstream_read", "connect", "upstream_response", "downstream_write"]
    assert datetime.fromisoformat(line["time"]).tzinfo is not None

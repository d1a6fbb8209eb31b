"""The API of the ops port: what it says of transfers, routes, upstreams and config, and that it is as documented."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from openapi_spec_validator import validate as validate_openapi

from gateway.config import parse_config
from gateway.observe.live import Slices, worker_of
from gateway.ops.snapshot import hide_secrets
from tests.ops.live import OPENAPI, ask, read_all, rows, upload, validate, wait_received, wait_row
from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    Wire,
    forward_config,
    post,
    read_request,
    responding,
    run_gateway,
    wait_until,
)

GET = b"GET /x HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"


def test_openapi_document_is_valid() -> None:
    validate_openapi(OPENAPI)


async def test_transfer_under_way_is_shown_with_every_key() -> None:
    async with RawUpstream(read_all) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        async with upload(gateway, b"x" * 1000, 5000, "/a?b=c"):
            await wait_received(upstream.wires, 1000)
            row = await wait_row(gateway, lambda row: row["bytes"] == 1000)
            assert (row["worker"], row["id"]) == (os.getpid(), f"{os.getpid()}-1")
            assert (row["route"], row["upstream"], row["endpoint"]) == ("r", "up", upstream.url)
            assert (row["method"], row["target"], row["client"]) == ("POST", "/a?b=c", "127.0.0.1")
            assert (row["direction"], row["length"], row["lane"]) == ("upload", 5000, "copy")
            assert row["waiting_on"] == "downstream_read"
            assert sum(row["wait_seconds"].values()) == pytest.approx(row["seconds"], rel=0.01, abs=0.005)
            status, same = await ask(gateway, f"/api/transfers/{row['id']}")
            assert (status, same["id"], same["request_id"]) == (200, row["id"], row["request_id"])
        await gateway.wait_log_line()
        assert await rows(gateway) == []
        assert (await ask(gateway, f"/api/transfers/{row['id']}"))[0] == 404


async def test_direction_is_download_once_the_response_head_is_here() -> None:
    async def respond_in_part(wire: Wire) -> None:
        await read_request(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"y" * 700)
        await wire.read_to_end()

    async with RawUpstream(respond_in_part) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(GET)
        row = await wait_row(gateway, lambda row: row["bytes"] == 700)
        assert (row["direction"], row["length"], row["waiting_on"]) == ("download", 9000, "upstream_read")
        await client.close()


async def test_exchange_that_waits_for_a_slot_is_a_transfer_that_waits_on_the_queue() -> None:
    config = forward_config("http://127.0.0.1:9", upstream_keys={"max_in_flight": 1})
    async with RawUpstream(read_all) as upstream:
        config["upstreams"]["up"]["endpoints"] = [upstream.url]
        async with run_gateway(config) as gateway:
            async with upload(gateway, b"", 10), upload(gateway, b"", 10):
                row = await wait_row(gateway, lambda row: row["waiting_on"] == "queue")
                assert (row["endpoint"], row["bytes"], row["lane"]) == (None, 0, None)
                _, document = await ask(gateway, "/api/upstreams")
                shown = document["upstreams"][0]
                assert (shown["slots"], shown["in_flight"], shown["queue_length"]) == (1, 1, 1)
                assert len({row["id"] for row in await rows(gateway)}) == 2


async def test_rate_is_that_of_the_last_seconds_and_eta_follows_from_it() -> None:
    async with RawUpstream(read_all) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        now = 1000.0
        live = gateway.gateway._handler.live
        async with upload(gateway, b"x" * 1000, 7000) as client:
            await wait_received(upstream.wires, 1000)
            await wait_row(gateway, lambda row: row["bytes"] == 1000)
            await live.look()
            exchange = next(iter(live._seen))
            seen = live._seen[exchange]
            assert exchange.upload is not None
            now = exchange.upload.started
            seen.points.clear()
            for seconds in (0, 1, 2):
                seen.add_point(now + seconds, exchange)
            await client.send(b"x" * 4000)
            await wait_received(upstream.wires, 5000)
            await wait_row(gateway, lambda row: row["bytes"] == 5000)
            # The point of second 0 is too old at second 3: 4000 bytes came in the 2 s since second 1.
            seen.add_point(now + 3, exchange)
            assert seen.rate(now + 3, exchange.upload) == pytest.approx(2000)


async def test_routes_upstreams_and_failures_count_what_happened() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        config = forward_config(upstream.url, match={"prefix": "/"})
        config["upstreams"]["gone"] = {"endpoints": ["http://127.0.0.1:9"]}
        config["routes"].append({"name": "broken", "match": {"prefix": "/b"}, "forward": {"upstream": "gone"}})
        async with run_gateway(config) as gateway:
            await gateway.request(post(b"z" * 300, content_type="text/plain"))
            await gateway.request(GET.replace(b"/x", b"/b"))
            _, document = await ask(gateway, "/api/routes")
            routes = {route["route"]: route for route in document["routes"]}
            assert routes["r"]["upload_bytes"] == 300
            assert routes["r"]["outcomes"] == {"upload": {"complete": 1}, "download": {"complete": 1}}
            assert routes["broken"]["failures"] == {"client": 0, "upstream": 1, "gateway": 0}
            assert (routes["broken"]["requests"], routes["broken"]["upstream"]) == (1, "gone")
            _, document = await ask(gateway, "/api/upstreams")
            gone = next(each for each in document["upstreams"] if each["upstream"] == "gone")
            assert (gone["requests"], gone["errors"]) == (1, 1)
            _, document = await ask(gateway, "/api/failures")
            (failure,) = document["failures"]
            line = await gateway.wait_log_line(2)
            assert (failure["code"], failure["blame"], failure["status"]) == ("connect_refused", "upstream", 502)
            assert failure["request_id"] == line["request_id"]


@pytest.mark.expected_log("gateway.upstream", "is down", reason="the endpoint fails its checks")
async def test_endpoint_that_is_down_is_shown_with_its_reason_and_since_when() -> None:
    health = {"path": "/", "interval": "10ms", "fails": 1, "timeout": "1s"}
    config = forward_config("http://127.0.0.1:9", upstream_keys={"health": health})
    async with run_gateway(config) as gateway:
        await wait_until(lambda: not gateway.stats.upstreams["up"].endpoints["http://127.0.0.1:9"].is_up)
        _, document = await ask(gateway, "/api/upstreams")
        (endpoint,) = document["upstreams"][0]["endpoints"]
        assert (endpoint["is_up"], endpoint["reason"]) == (False, "1 check failed: connection refused")
        assert endpoint["since"] is not None
        _, snapshot = await ask(gateway, "/api/snapshot")
        assert snapshot["is_ready"] is False
        (problem,) = snapshot["problems"]
        assert problem["severity"] == "error"
        assert "up is down (http://127.0.0.1:9: 1 check failed: connection refused)" in problem["text"]


@pytest.mark.slow
async def test_history_has_a_point_per_second_by_route_and_direction() -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        await gateway.request(post(b"z" * 3000, content_type="text/plain"))
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                _, document = await ask(gateway, "/api/history")
                series = {each["route"]: each for each in document["routes"]}
                if document["points"] and any(series["r"]["upload_bytes_per_second"]):
                    break
                await asyncio.sleep(0.05)
        assert len(series["r"]["requests_per_second"]) == document["points"]
        _, document = await ask(gateway, "/api/routes")
        route = next(each for each in document["routes"] if each["route"] == "r")
        assert route["last_minute"]["upload_bytes_per_second"] > 0


async def test_config_is_shown_with_its_generation_and_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_THE_MODEL", "hunter-2000")
    text = """
        ops: {token: geheim}
        upstreams: {up: {endpoints: ["http://127.0.0.1:9"]}}
        routes:
          - name: r
            match: {prefix: /, headers: {X-Custom: "${KEY_OF_THE_MODEL}", Authorization: literal-secret}}
            forward: {upstream: up, form_fields: {add: {api_key: secret-too, mode: fast}}}
    """
    config = parse_config(text)
    shown = json.dumps(hide_secrets(config.show(), config))
    for secret in ("geheim", "hunter-2000", "literal-secret", "secret-too"):
        assert secret not in shown
    assert "${KEY_OF_THE_MODEL}" in shown
    assert '"mode": "fast"' in shown
    async with run_gateway(forward_config("http://127.0.0.1:9")) as gateway:
        _, document = await ask(gateway, "/api/config")
        assert document["generation"] == 1
        assert document["config"]["routes"][0]["name"] == "r"
        assert document["config"]["routes"][0]["timeouts"]["total"] == "off"


@pytest.mark.parametrize("path", [path for path in OPENAPI["paths"] if "{" not in path and path != "/api/events"])
async def test_every_path_is_as_documented_and_guarded(path: str) -> None:
    config = forward_config("http://127.0.0.1:9", top={"ops": {"listen": "127.0.0.1:0", "token": "t"}})
    async with run_gateway(config) as gateway:
        assert (await ask(gateway, path, Authorization="Bearer t"))[0] == 200
        async with aiohttp.ClientSession() as session:
            async with session.get(gateway.ops_url + path) as response:
                assert response.status == 401
            async with session.get(gateway.ops_url + path, headers={"Host": "evil.example"}) as response:
                assert response.status == 403
                assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("transfer_id", ["1-1", "0-0", "x", "-", "1-", "9" * 5000 + "-1", "%C2%B2-1"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_unknown_transfer_is_404(method: str, transfer_id: str) -> None:
    async with run_gateway(forward_config("http://127.0.0.1:9")) as gateway:
        status, document = await ask(gateway, f"/api/transfers/{transfer_id}", method)
        assert (status, document["status"]) == (404, 404)


def test_transfer_id_names_its_worker() -> None:
    assert worker_of("12-34") == 12
    assert [worker_of(text) for text in ("12", "12-", "-3", "a-1", "1-\N{SUPERSCRIPT TWO}", "1" * 50 + "-1")] == [
        None
    ] * 6


async def test_rows_are_made_in_slices() -> None:
    """The loop is free for others after each slice, whatever the rows take."""

    def ticks() -> Iterator[float]:
        now = 0.0
        while True:
            now += 0.0005
            yield now

    clock = ticks()
    slices = Slices(clock=lambda: next(clock))
    others: list[int] = []

    async def other() -> None:
        while True:
            others.append(1)
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in range(100):
        if slices.is_over:
            await slices.begin()
    task.cancel()
    # 2 ms at 0.5 ms each.
    assert len(others) >= 20


async def test_idle_connection_to_the_ops_port_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.ops.port.IDLE_SECONDS", 0.05)
    async with run_gateway(forward_config("http://127.0.0.1:9")) as gateway:
        for sent in (b"", b"GET /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.gateway.ops_address.port)
            writer.write(sent)
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await reader.read()
            writer.close()


def events_of(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        assert lines["event"] == "snapshot"
        found.append(json.loads(lines["data"]))
    return found


@pytest.mark.slow
async def test_events_are_snapshots_and_end_when_the_gateway_stops() -> None:
    async with RawUpstream(read_all) as upstream:
        async with run_gateway(forward_config(upstream.url)) as gateway, aiohttp.ClientSession() as session:
            async with upload(gateway, b"x", 9) as client:
                await wait_row(gateway, lambda row: row["bytes"] == 1)
                async with session.get(gateway.ops_url + "/api/events") as response:
                    assert response.content_type == "text/event-stream"
                    text = ""
                    async with asyncio.timeout(TIMEOUT_SECONDS):
                        while len(events := events_of(text)) < 2:
                            text += (await response.content.readany()).decode()
                    schema = OPENAPI["components"]["schemas"]["Snapshot"]
                    for event in events:
                        validate(event, schema)
                        assert [row["length"] for row in event["transfers"]] == [9]
                    await client.close()
                    stopping = asyncio.create_task(gateway.gateway.stop())
                    async with asyncio.timeout(TIMEOUT_SECONDS):
                        while await response.content.readany():
                            pass
                    await stopping

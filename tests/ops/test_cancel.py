"""Cancelling transfers through the ops port: on every action and lane, both peers are cut."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.observe.stats import Direction
from tests.ops.live import ask, read_all, rows, upload, wait_received, wait_row
from tests.peers import (
    OK,
    RawUpstream,
    RunningGateway,
    Wire,
    form,
    forward_config,
    post,
    problem_of,
    read_request,
    responding,
    run_gateway,
    wait_until,
)
from tests.slow_disk import SlowDisk

BIG = 4_000_000


async def cancel(gateway: RunningGateway, row: dict[str, Any]) -> None:
    status, document = await ask(gateway, f"/api/transfers/{row['id']}", "DELETE")
    assert (status, document) == (202, {"id": row["id"], "outcome": "cancelled"})


async def check_log(gateway: RunningGateway, status: int) -> None:
    line = await gateway.wait_log_line()
    assert (line["outcome"], line["blame"], line["code"]) == ("cancelled", "gateway", "operator_cancelled")
    assert line["status"] == status
    assert "operator" in line["reason"]


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def multipart_head(size: int) -> bytes:
    return (
        f"POST / HTTP/1.1\r\nHost: gw\r\nContent-Type: multipart/form-data; boundary=XBOUNDARYX\r\n"
        f"Content-Length: {size}\r\n\r\n"
    ).encode()


ACTIONS: dict[str, dict[str, Any]] = {
    "forward": {"forward": {"upstream": "up"}},
    "opaque": {"forward": {"upstream": "up", "multipart": "opaque"}},
    "strict": {"forward": {"upstream": "up", "multipart": "strict"}},
    "raw": {"forward": {"upstream": "up", "body": "raw"}},
    "split": {"split": {"upstream": "up"}},
    "store": {"store": {"directory": "DIRECTORY"}},
}


@pytest.mark.usefixtures("every_lane")
@pytest.mark.parametrize("action", ACTIONS)
async def test_cancelled_upload_gets_a_problem_document_and_its_upstream_is_cut(action: str, tmp_path: Path) -> None:
    body = form(("name=a", b"b"), ('name="f"; filename="x"', b"y" * BIG))
    async with RawUpstream(read_all) as upstream:
        keys = json.loads(json.dumps(ACTIONS[action]).replace("DIRECTORY", str(tmp_path)))
        config = {
            "upstreams": {"up": {"endpoints": [upstream.url]}},
            "routes": [{"name": "r", "match": {"prefix": "/"}, **keys}],
        }
        async with run_gateway(config) as gateway:
            client = await gateway.connect()
            await client.send(multipart_head(len(body)) + body[:600_000])
            row = await wait_row(gateway, lambda row: row["bytes"] >= 500_000)
            await cancel(gateway, row)
            # The client still sends: it can read the response all the same.
            problem = problem_of(await client.read_to_end())
            assert (problem["code"], problem["status"], problem["route"]) == ("operator_cancelled", 503, "r")
            if action != "store":
                await upstream.wait_finished()
                assert not upstream.received.endswith(b"0\r\n\r\n")
            await client.close()
            await check_log(gateway, 503)
            assert gateway.stats.routes["r"].transfers[Direction.UPLOAD].outcomes["cancelled"] == 1  # type: ignore[index]
            assert await rows(gateway) == []
        assert not list(files_in(tmp_path))


@contextlib.asynccontextmanager
async def download_config(action: str, directory: Path) -> AsyncIterator[dict[str, Any]]:
    """Yield a config with a download that does not end before the client has read it."""

    async def respond(wire: Wire) -> None:
        await read_request(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (200 * BIG))
        while True:
            await wire.send(b"z" * 65536)

    async with RawUpstream(respond) as upstream:
        actions: dict[str, dict[str, Any]] = {
            "forward": {"forward": {"upstream": "up"}},
            "files": {"files": {"directory": str(directory)}},
            "fetch": {"fetch": {"allow": [upstream.url + "/"], "private_networks": "allow"}},
        }
        prefix = {"files": "/", "fetch": f"/{upstream.url}/", "forward": "/"}[action]
        yield {
            "target": prefix + "big.bin",
            "config": {
                "upstreams": {"up": {"endpoints": [upstream.url]}},
                "routes": [{"name": "r", "match": {"prefix": "/"}, **actions[action]}],
            },
        }
        if action != "files":
            await upstream.wait_finished()


@pytest.mark.usefixtures("every_lane")
@pytest.mark.parametrize("action", ["forward", "files", "fetch"])
async def test_cancelled_download_breaks_off(action: str, tmp_path: Path) -> None:
    with (tmp_path / "big.bin").open("wb") as file:
        file.truncate(200 * BIG)
    async with download_config(action, tmp_path) as made, run_gateway(made["config"]) as gateway:
        client = await gateway.connect()
        await client.send(f"GET {made['target']} HTTP/1.1\r\nHost: gw\r\n\r\n".encode())
        row = await wait_row(gateway, lambda row: row["direction"] == "download" and row["bytes"] > 0)
        await cancel(gateway, row)
        received = await client.read_to_end()
        assert received.startswith(b"HTTP/1.1 200")
        assert len(received) < 200 * BIG
        await client.close()
        await check_log(gateway, 200)


async def test_cancelled_request_that_waits_for_its_response_gets_a_problem_document() -> None:
    async def swallow(wire: Wire) -> None:
        await read_request(wire)
        await wire.read_to_end()

    async with RawUpstream(swallow) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
        row = await wait_row(gateway, lambda row: row["waiting_on"] == "upstream_response")
        await cancel(gateway, row)
        assert problem_of(await client.read_to_end())["code"] == "operator_cancelled"
        await upstream.wait_finished()
        await client.close()
        await check_log(gateway, 503)


async def test_cancelled_split_does_not_wait_for_the_responses_of_its_files() -> None:
    async with RawUpstream(read_all) as upstream:
        config = forward_config(upstream.url)
        config["routes"][0] = {"name": "r", "match": {"prefix": "/"}, "split": {"upstream": "up"}}
        async with run_gateway(config) as gateway:
            client = await gateway.connect()
            await client.send(post(form(('name="a"; filename="a"', b"x"), ('name="b"; filename="b"', b"y"))))
            row = await wait_row(
                gateway, lambda row: row["waiting_on"] == "upstream_response" and row["bytes"] == row["length"]
            )
            await cancel(gateway, row)
            assert problem_of(await client.read_to_end())["code"] == "operator_cancelled"
            await upstream.wait_finished()
            await client.close()
            await check_log(gateway, 503)


# It used to wait until the disk had answered, since an upload removes its files before it responds.
@pytest.mark.parametrize("operation", ["WRITE", "FSYNC"])
async def test_cancelled_store_does_not_wait_for_its_disk(slow_disk: SlowDisk, operation: str) -> None:
    route = {"name": "r", "match": {"prefix": "/"}, "store": {"directory": str(slow_disk.directory)}}
    async with run_gateway({"routes": [route]}) as gateway:
        await slow_disk.hold(operation)
        client = await gateway.connect()
        await client.send(post(form(('name="f"; filename="f"', b"x" * 700_000))))
        await slow_disk.wait_held()
        row = await wait_row(gateway, lambda row: row["waiting_on"] == "disk_write")
        await cancel(gateway, row)
        assert problem_of(await client.read_to_end())["code"] == "operator_cancelled"
        assert await slow_disk.held()
        await client.close()
        await check_log(gateway, 503)
        await slow_disk.release()
    # The gateway has waited for its threads.
    assert await asyncio.to_thread(os.listdir, slow_disk.directory) == []


# It used to wait until the bucket had responded, or for `idle`.
async def test_cancelled_store_does_not_wait_for_its_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    asked = asyncio.Event()

    async def script(wire: Wire) -> None:
        head = await wire.read_head()
        while head.startswith(b"HEAD"):
            await wire.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            head = await wire.read_head()
        asked.set()
        await wire.read_to_end()

    async with RawUpstream(script) as server:
        bucket = {"url": "s3://bucket/in", "endpoint": server.url, "region": "us-east-1"}
        route = {"name": "r", "match": {"prefix": "/"}, "store": bucket, "timeouts": {"idle": "2s"}}
        async with run_gateway({"routes": [route]}) as gateway:
            client = await gateway.connect()
            await client.send(post(form(('name="f"; filename="a"', b"data"))))
            async with asyncio.timeout(20):
                await asked.wait()
            await cancel(gateway, await wait_row(gateway, bool))
            assert problem_of(await client.read_to_end())["code"] == "operator_cancelled"
            # The upload is aborted once the bucket has responded, or `idle` is over; the gateway waits for that.
            assert [task for task in asyncio.all_tasks() if task.get_name() == "abort in a bucket"]
            await check_log(gateway, 503)
            await client.close()


async def test_cancelled_request_leaves_the_queue() -> None:
    async with RawUpstream(read_all) as upstream:
        config = forward_config(upstream.url, upstream_keys={"max_in_flight": 1})
        async with run_gateway(config) as gateway, upload(gateway, b"", 10), upload(gateway, b"", 10) as queued:
            row = await wait_row(gateway, lambda row: row["waiting_on"] == "queue")
            await cancel(gateway, row)
            assert problem_of(await queued.read_to_end())["code"] == "operator_cancelled"
            assert gateway.stats.upstreams["up"].queue_length == 0
            assert [row["waiting_on"] for row in await rows(gateway)] != ["queue"]


async def test_a_cancelled_transfer_is_logged_with_its_operator(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway")
    async with RawUpstream(read_all) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        async with upload(gateway, b"x", 9) as client:
            row = await wait_row(gateway, lambda row: row["bytes"] == 1)
            await cancel(gateway, row)
            await client.read_to_end()
    (record,) = [record for record in caplog.records if "cancelled" in record.getMessage()]
    assert record.getMessage() == f"an operator at 127.0.0.1 cancelled the request {row['request_id']}"


async def test_transfer_that_has_ended_cannot_be_cancelled_nor_its_successor() -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 2\r\n\r\na")
        row = await wait_row(gateway, lambda row: row["bytes"] == 1)
        await client.send(b"b")
        assert (await client.read_until(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 2\r\n\r\na")
        successor = await wait_row(gateway, lambda row: row["bytes"] == 1)
        assert successor["id"] != row["id"]
        assert (await ask(gateway, f"/api/transfers/{row['id']}", "DELETE"))[0] == 404
        await client.send(b"b")
        assert (await client.read_until(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")
        await client.close()


async def test_cancelling_twice_is_the_same_as_once() -> None:
    async with RawUpstream(read_all) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        async with upload(gateway, b"x", 9) as client:
            await wait_received(upstream.wires, 1)
            row = await wait_row(gateway, lambda row: row["bytes"] == 1)
            handler = gateway.gateway._handler
            assert handler.cancel(row["id"], "here")
            assert handler.cancel(row["id"], "here")
            assert problem_of(await client.read_to_end())["code"] == "operator_cancelled"


async def test_gateway_that_stops_while_a_transfer_is_cancelled_ends() -> None:
    async with RawUpstream(read_all) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        async with upload(gateway, b"x", 9) as client:
            row = await wait_row(gateway, lambda row: row["bytes"] == 1)
            handler = gateway.gateway._handler
            handler.cancel(row["id"], "here")
            tasks = handler.cancel_exchanges()
            await client.read_to_end()
            await wait_until(lambda: all(task.done() for task in tasks))
            assert [task.cancelled() for task in tasks] == [True]
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "evil.example"}],
)
async def test_page_of_another_site_cannot_cancel(headers: dict[str, str]) -> None:
    async with RawUpstream(read_all) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        async with upload(gateway, b"x", 2) as client:
            row = await wait_row(gateway, lambda row: row["bytes"] == 1)
            url = f"{gateway.ops_url}/api/transfers/{row['id']}"
            async with aiohttp.ClientSession() as session, session.delete(url, headers=headers) as response:
                assert response.status == 403
            assert [each["id"] for each in await rows(gateway)] == [row["id"]]
            await client.close()

"""Timeouts: on every leg a peer that stalls is cut and blamed. No time limit depends on the size of a body."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from gateway.observe.stats import Direction
from tests.peers import (
    OK,
    RawUpstream,
    Wire,
    forward_config,
    problem_of,
    read_request,
    responding,
    run_gateway,
    split_response,
    wait_until,
)

# The sleeps below make a peer slow on purpose. No test waits for a condition with a sleep.
BLOCK = b"x" * 65536
QUICK = {"idle": "200ms", "min_rate": "off"}


def config(url: str, **keys: Any) -> dict[str, Any]:
    upstream_keys = {"timeouts": {"response": "200ms", "idle": "200ms", **keys.pop("upstream_timeouts", {})}}
    return forward_config(url, **{"timeouts": QUICK, "upstream_keys": upstream_keys, **keys})


async def stop_reading(wire: Wire) -> None:
    """Read the head, then never read or write again."""
    await wire.read_head()
    await asyncio.Event().wait()


async def test_client_that_stalls_during_its_upload_is_408() -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 100\r\n\r\nhalf")
        response = await client.read_to_end()
        await client.close()
        assert problem_of(response)["code"] == "client_idle"
        line = await gateway.wait_log_line()
        assert (line["status"], line["outcome"], line["blame"]) == (408, "client_slow", "client")


async def test_upstream_that_stops_reading_is_504() -> None:
    async with RawUpstream(stop_reading) as upstream, run_gateway(config(upstream.url)) as gateway:
        client = await gateway.connect()
        sending = asyncio.create_task(
            client.send_all([b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 100000000\r\n\r\n", *[BLOCK] * 1500])
        )
        response = await client.read_to_end()
        await sending
        await client.close()
        assert problem_of(response)["code"] == "upstream_stuck"
        line = await gateway.wait_log_line()
        assert (line["outcome"], line["blame"], line["upload"]) == ("upstream_slow", "upstream", "upstream_slow")


async def test_upstream_that_sends_no_response_is_504() -> None:
    async with RawUpstream(stop_reading) as upstream, run_gateway(config(upstream.url)) as gateway:
        response = await gateway.request(b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
        assert problem_of(response)["code"] == "response_timeout"
        assert (await gateway.wait_log_line())["blame"] == "upstream"


async def test_upstream_that_sends_no_response_after_a_complete_upload_is_504() -> None:
    async with RawUpstream(stop_reading) as upstream, run_gateway(config(upstream.url)) as gateway:
        response = await gateway.request(
            b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab"
        )
        assert problem_of(response)["code"] == "response_timeout"
        line = await gateway.wait_log_line()
        assert (line["upload"], line["outcome"]) == ("complete", "upstream_slow")


async def test_upstream_that_stalls_during_its_response_is_cut() -> None:
    async def stall(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await asyncio.Event().wait()

    async with RawUpstream(stall) as upstream, run_gateway(config(upstream.url)) as gateway:
        response = await gateway.request(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
        assert response.endswith(b"half")
        line = await gateway.wait_log_line()
        assert (line["code"], line["outcome"], line["download"]) == ("upstream_idle", "upstream_slow", "upstream_slow")


async def test_client_that_stops_reading_its_response_is_cut() -> None:
    async def endless(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        await wire.send_all(BLOCK for _ in range(15000))

    async with RawUpstream(endless) as upstream, run_gateway(config(upstream.url)) as gateway:
        client = await gateway.connect()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # a client that does not read
        await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
        line = await gateway.wait_log_line()
        assert (line["code"], line["outcome"], line["blame"]) == ("client_idle", "client_slow", "client")
        await upstream.wait_finished()
        client.writer.transport.abort()


@pytest.mark.parametrize("keeps_reading", [False, True], ids=["client stops reading", "client keeps reading"])
async def test_idle_timeout_covers_the_buffered_end_of_a_response(keeps_reading: bool) -> None:
    """The rest of a response is in the write buffer when its source has ended. A client that stops reading then must
    not keep the connection open; a client that keeps reading must receive the whole response."""
    size = 16 * 2**20
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size

    async with (
        RawUpstream(responding(response)) as upstream,
        run_gateway(config(upstream.url, top={"lanes": "copy"})) as gateway,
    ):
        client = await gateway.connect()
        await wait_until(lambda: gateway.gateway._traffic.connections)
        transport = gateway.gateway._traffic.connections[0].transport
        assert transport is not None
        # The buffer accepts every write at once, so it holds the whole body when the source has ended.
        transport.set_write_buffer_limits(high=2 * size)
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # a client that does not read
        await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
        download = gateway.stats.routes["r"].transfers[Direction.DOWNLOAD]
        await wait_until(lambda: download.bytes_moved == size)
        if keeps_reading:
            client.reader._transport.resume_reading()  # type: ignore[attr-defined]  # see above
            assert len(split_response(await client.read_to_end())[2]) == size
        line = await gateway.wait_log_line()
        expected = ("complete", "complete") if keeps_reading else ("client_slow", "client_slow")
        assert (line["outcome"], line["download"]) == expected
        client.writer.transport.abort()


@pytest.mark.parametrize("leg", ["upload", "download"])
async def test_transfer_below_the_minimum_rate_is_cut(leg: str) -> None:
    trickling = asyncio.Event()

    async def trickle(wire: Wire) -> None:
        trickling.set()
        while True:
            await wire.send(b"x")
            await asyncio.sleep(0.02)

    async def script(wire: Wire) -> None:
        await wire.read_head()
        if leg == "download":
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            await trickle(wire)
        await wire.read_to_end()

    timeouts = {"idle": "5s", "min_rate": "1KiB/s", "grace": "300ms"}
    keys = {"upstream_timeouts": {"idle": "5s"}}
    async with RawUpstream(script) as upstream, run_gateway(config(upstream.url, timeouts=timeouts, **keys)) as gateway:
        client = await gateway.connect()
        if leg == "upload":
            await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 100000\r\n\r\n")
            sending = asyncio.create_task(trickle(client))
        else:
            await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
            sending = asyncio.create_task(trickling.wait())  # type: ignore[arg-type]  # the task is only cancelled below
        line = await gateway.wait_log_line()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await client.close()
        expected = ("client_too_slow", "client") if leg == "upload" else ("upstream_idle", "upstream")
        assert (line["code"], line["blame"]) == expected


@pytest.mark.parametrize("is_slow", [False, True])
async def test_rate_of_a_compressed_download_is_that_of_the_bytes_on_the_wire(is_slow: bool) -> None:
    """Its data is a hundred times as long, and at `min_rate` in either case."""
    body = gzip.compress(bytes(40_000)) * 100
    step = len(body) // (4000 if is_slow else 20)

    async def respond(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), step):
            await wire.send_all([body[at : at + step]])
            await asyncio.sleep(0.03)

    timeouts = {"idle": "5s", "min_rate": "4KB/s", "grace": "300ms"}
    keys = {"upstream_timeouts": {"idle": "5s"}}
    async with (
        RawUpstream(respond) as upstream,
        run_gateway(config(upstream.url, timeouts=timeouts, **keys)) as gateway,
    ):
        response = await gateway.request(b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
        line = await gateway.wait_log_line()
        assert (split_response(response)[2] == body) is not is_slow
        assert (line["code"], line["blame"]) == (("upstream_idle", "upstream") if is_slow else (None, "none"))


@pytest.mark.parametrize("is_slow", [False, True])
async def test_rate_of_an_upload_that_is_decompressed_is_that_of_the_bytes_on_the_wire(
    is_slow: bool, tmp_path: Path
) -> None:
    body = gzip.compress(bytes(40_000)) * 100
    step = len(body) // (4000 if is_slow else 20)
    route = {
        "name": "r",
        "match": {"prefix": "/"},
        "store": {"directory": str(tmp_path)},
        "filters": ["decompress"],
        "timeouts": {"idle": "5s", "min_rate": "4KB/s", "grace": "300ms"},
    }
    async with run_gateway({"routes": [route]}) as gateway:
        client = await gateway.connect()
        head = b"PUT /a.gz HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Encoding: gzip\r\n"
        await client.send(head + b"Content-Length: %d\r\n\r\n" % len(body))
        reading = asyncio.create_task(client.read_to_end())
        for at in range(0, len(body), step):
            await client.send_all([body[at : at + step]])
            if reading.done():
                break
            await asyncio.sleep(0.03)
        status, _, _ = split_response(await reading)
        await client.close()
        assert status == (408 if is_slow else 201)
        sizes = [entry.stat().st_size for entry in os.scandir(tmp_path)]
        assert sizes == ([] if is_slow else [4_000_000])


async def test_client_that_pauses_longer_than_grace_is_not_cut() -> None:
    """`grace` cut every pause of its length, so that `idle` had no effect."""
    timeouts = {"idle": "5s", "min_rate": "1MiB/s", "grace": "200ms"}
    keys = {"upstream_timeouts": {"idle": "5s", "response": "5s"}}
    async with (
        RawUpstream(responding(OK)) as upstream,
        run_gateway(config(upstream.url, timeouts=timeouts, **keys)) as gateway,
    ):
        client = await gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: %d\r\n\r\n" % (2 * len(BLOCK)), BLOCK)
        await asyncio.sleep(0.6)
        await client.send(BLOCK)
        assert split_response(await client.read_head())[0] == 200
        await client.close()


async def test_upstream_that_stops_reading_longer_than_grace_is_not_cut() -> None:
    """A second upload to a worker that was busy with the first was cut after `grace` as `upstream_stuck`."""
    size = 16 * 2**20

    async def busy(wire: Wire) -> None:
        transport = wire.writer.transport
        transport.pause_reading()  # type: ignore[attr-defined]  # a worker that is busy with something else
        await asyncio.sleep(0.6)
        transport.resume_reading()  # type: ignore[attr-defined]  # see above
        await read_request(wire)
        await wire.send(OK)

    timeouts = {"idle": "5s", "min_rate": "1MiB/s", "grace": "200ms"}
    keys = {"upstream_timeouts": {"idle": "5s", "response": "5s"}}
    async with RawUpstream(busy) as upstream, run_gateway(config(upstream.url, timeouts=timeouts, **keys)) as gateway:
        response = await gateway.request(
            b"POST / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size, b"x" * size
        )
        assert split_response(response)[0] == 200


async def test_client_that_reads_slowly_through_large_kernel_buffers_is_not_cut() -> None:
    """curl --limit-rate was cut: the kernel wakes a writer only after a third of megabytes has left, and only what a
    socket call took counted as progress. Here each wake-up takes longer than `idle` and `grace`."""
    size = 8 * 2**20

    async def endless(wire: Wire) -> None:
        await wire.read_head()
        await wire.send_all([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, *[b"x" * 2**20] * 8])

    timeouts = {"idle": "600ms", "min_rate": "1KiB/s", "grace": "600ms"}
    async with RawUpstream(endless) as upstream, run_gateway(config(upstream.url, timeouts=timeouts)) as gateway:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**15)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", gateway.port))
            await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
            for _ in range(40):
                assert await loop.sock_recv(client, 2**14)
                await asyncio.sleep(0.04)
            assert not gateway.log


async def test_slow_transfer_that_never_stalls_is_not_cut() -> None:
    """A total time limit would cut slow healthy uploads, so there is none. The upload takes twice as long as `idle`."""
    async with (
        RawUpstream(responding(OK)) as upstream,
        run_gateway(config(upstream.url, timeouts={"idle": "500ms", "min_rate": "off"})) as gateway,
    ):
        client = await gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 20\r\n\r\n")
        for _ in range(20):
            await client.send(b"x")
            await asyncio.sleep(0.05)
        assert split_response(await client.read_head())[0] == 200
        await client.close()


async def test_total_timeout_is_enforced_if_configured() -> None:
    timeouts = {"idle": "5s", "min_rate": "off", "total": "300ms"}
    async with RawUpstream(responding(OK)) as upstream, run_gateway(config(upstream.url, timeouts=timeouts)) as gateway:
        client = await gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 100000\r\n\r\n")
        while not gateway.log:
            await client.send_all([b"x"])
            await asyncio.sleep(0.02)
        assert gateway.log[0]["code"] == "client_too_slow"
        await client.close()


async def test_minimum_rate_does_not_apply_to_event_streams() -> None:
    async def events(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for _ in range(6):
            await wire.send(b"data: x\n\n")
            await asyncio.sleep(0.1)
        await wire.close()

    timeouts = {"idle": "5s", "min_rate": "1MiB/s", "grace": "100ms"}
    keys = {"upstream_timeouts": {"idle": "5s"}}
    async with RawUpstream(events) as upstream, run_gateway(config(upstream.url, timeouts=timeouts, **keys)) as gateway:
        response = await gateway.request(b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
        assert response.count(b"data: x") == 6
        assert response.endswith(b"0\r\n\r\n")


async def test_wait_seconds_add_up_to_the_duration_and_name_the_slow_leg() -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(config(upstream.url, timeouts={})) as gateway:
        client = await gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 10\r\n\r\n")
        for _ in range(10):
            await client.send(b"x")
            await asyncio.sleep(0.03)
        line = await gateway.wait_log_line()
        await client.close()
        waits = line["wait_seconds"]
        assert waits["downstream_read"] > 0.9 * line["seconds"]
        assert sum(waits.values()) == pytest.approx(line["seconds"], rel=0.1)

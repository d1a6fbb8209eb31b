"""Lanes: a body arrives identical on every lane, and the access log names the lane."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.errors import Fault, FaultKind
from gateway.observe.stats import Direction
from gateway.transfer import RawSocket, SizedRawBody
from gateway.transfer.lanes import ChunkMemory
from gateway.transfer.raw_body import RawBody
from gateway.transfer.raw_socket import MAX_CHUNK_BYTES, MAX_LARGE_BYTES
from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    Wire,
    chunked,
    form,
    forward_config,
    post,
    read_request,
    responding,
    run_gateway,
    split_response,
    wait_until,
)

BODY = os.urandom(3_000_001)


async def send_slowly(wire: Wire, body: bytes) -> None:
    """Send in pieces of random size, and let other tasks run after each."""
    generator = random.Random(1)
    at = 0
    while at < len(body):
        size = generator.choice((1, 100, 5000, 300_000))
        await wire.send(body[at : at + size])
        at += size
        # Let the gateway run, so that it does not read several pieces as one.
        await asyncio.sleep(0)


@pytest.mark.parametrize("kind", ["raw", "form", "chunked form", "form in equal chunks"])
async def test_upload_arrives_identical_and_its_lane_is_logged(kind: str, every_lane: str) -> None:
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        seen.append((await read_request(wire))[1])
        await wire.send(OK)

    body = BODY if kind == "raw" else form(('name="f"; filename="a"', BODY))
    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        request = post(body, content_type="text/plain" if kind == "raw" else "")
        if "chunk" in kind:
            head = request.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
            cuts = [0, 1, 50, 200_000, 200_003, 1_500_000, len(body)]
            if kind == "form in equal chunks":
                cuts = [*range(0, len(body), 40_000), len(body)]
            request = head + chunked(*(body[a:b] for a, b in itertools.pairwise(cuts)))
        # A chunked body is read below the parser only if the head arrived in one piece.
        head, blank_line, rest = request.partition(b"\r\n\r\n")
        await client.send(head + blank_line)
        await send_slowly(client, rest)
        response = await client.read_to_end()
        await client.close()
        assert split_response(response)[2] == b"ok"
        assert seen == [body]
        line = await gateway.wait_log_line()
        expected = "copy" if every_lane == "copy" else "splice" if kind == "raw" else "direct"
        assert (line["upload_lane"], line["upload_bytes"], line["upload"]) == (expected, len(body), "complete")
        assert sum(gateway.stats.routes["r"].transfers[Direction.UPLOAD].lanes.values()) == 1


async def test_downloads_arrive_identical_and_both_connections_are_kept(every_lane: str) -> None:
    async def script(wire: Wire) -> None:
        while True:
            await wire.read_head()
            await send_slowly(wire, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        for count in range(1, 4):
            await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
            await client.read_head()
            assert await client.read_exactly(len(BODY)) == BODY
            line = await gateway.wait_log_line(count)
            expected = "splice" if every_lane == "auto" else "copy"
            assert (line["download_lane"], line["download_bytes"], line["outcome"]) == (expected, len(BODY), "complete")
        assert len(upstream.wires) == 1
        await client.close()


async def test_bytes_after_an_upload_are_never_read_as_its_body(every_lane: str) -> None:
    """Below the transports no parser runs: the connection closes after the response and drops pipelined requests."""
    seen: list[tuple[bytes, bytes]] = []

    async def script(wire: Wire) -> None:
        while True:
            seen.append(await read_request(wire))
            await wire.send(OK)

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        await asyncio.wait_for(upstream.connected.wait(), TIMEOUT_SECONDS)
        await client.send_all([BODY + b"GET /next HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"])
        response = await client.read_to_end()
        await client.close()
        assert seen[0][1] == BODY
        served = response.count(b"HTTP/1.1 200 OK")
        assert (served, len(seen)) == ((1, 1) if every_lane == "auto" else (2, 2))


async def test_unrequested_bytes_after_a_spliced_response_never_reach_the_next_response() -> None:
    async def script(wire: Wire) -> None:
        while True:
            await wire.read_head()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + BODY[:500_000])
            await wire.send(BODY[500_000:1_000_000])
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        for _ in range(3):
            await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
            await client.read_head()
            assert await client.read_exactly(1_000_000) == BODY[:1_000_000]
        await client.close()


async def test_copy_lane_is_used_if_configured() -> None:
    async def script(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)

    async with RawUpstream(script) as upstream:
        async with run_gateway(forward_config(upstream.url, top={"lanes": "copy"})) as gateway:
            response = await gateway.request(b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
            assert split_response(response)[2] == BODY
            assert (await gateway.wait_log_line())["download_lane"] == "copy"


async def test_client_that_leaves_within_chunks_of_one_size_cuts_the_upload(every_lane: str) -> None:
    received = b""

    async def script(wire: Wire) -> None:
        nonlocal received
        received = await wire.read_to_end()

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n")
        await wait_until(lambda: len(upstream.wires[-1:]) == 1)
        await send_slowly(client, chunked(*[BODY[:40_000]] * 50)[:-5])
        await client.close()
        assert (await gateway.wait_log_line())["upload"] == "client_left"
    assert not received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("pieces", [(BODY,), (BODY[:40_000],) * 75])
@pytest.mark.parametrize("count", [1, 2])
async def test_chunked_uploads_follow_each_other_on_a_connection(
    count: int, pieces: tuple[bytes, ...], every_lane: str
) -> None:
    """The decoder continues where the transport stopped, and the transport where the decoder ended."""
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        while True:
            seen.append((await read_request(wire))[1])
            await wire.send(OK)

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        for _ in range(count - 1):
            await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n")
            await send_slowly(client, chunked(*pieces))
            await client.read_until(b"ok")
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n")
        await wait_until(lambda: len(upstream.wires[-1:]) == 1)
        await send_slowly(client, chunked(*pieces))
        await client.read_until(b"ok")
        await client.close()
        assert seen == [b"".join(pieces)] * count
        assert (await gateway.wait_log_line())["upload_lane"] == ("direct" if every_lane == "auto" else "copy")


def body_without_socket() -> SizedRawBody:
    """Return a body without a socket, for tests that use only its size; its last receive was large."""
    body = SizedRawBody(cast(RawSocket, None), 10**9, lambda: Fault(FaultKind.BUG, ""))
    body.received_bytes = MAX_LARGE_BYTES
    return body


async def test_chunk_size_grows_while_chunks_are_written_and_shrinks_while_filters_hold_them() -> None:
    memory, rest, sizes = ChunkMemory(), body_without_socket(), []
    for held_seconds, was_taken in [(0.0, True)] * 4 + [(0.0, False)] + [(1.0, True)] * 5 + [(0.0, True)]:
        memory.size_next(rest, held_seconds, was_taken=was_taken)
        sizes.append(rest.chunk_bytes // 1024)
    assert sizes == [256, 512, 1024, 1024, 128, 64, 32, 16, 8, 8, 16]


async def test_chunks_that_nothing_keeps_may_be_larger() -> None:
    memory, rest, sizes = ChunkMemory(), body_without_socket(), []
    rest.most_bytes = MAX_LARGE_BYTES
    for _ in range(6):
        memory.size_next(rest, 0.0, was_taken=True)
        sizes.append(rest.chunk_bytes // 1024)
    assert sizes == [256, 512, 1024, 2048, 2048, 2048]


async def test_chunks_are_not_much_larger_than_what_is_received_for_them() -> None:
    """They doubled after a receive of one byte, too: memory of 2 MiB was made for each, which took 105 us."""
    memory, rest, sizes = ChunkMemory(), body_without_socket(), []
    rest.most_bytes = MAX_LARGE_BYTES
    for received_kib in [128, 256, 512, 200, 1024, 512, 511, 127, 1, 1, 1, 1, 1]:
        rest.received_bytes = received_kib * 1024
        memory.size_next(rest, 0.0, was_taken=True)
        sizes.append(rest.chunk_bytes // 1024)
    assert sizes == [256, 512, 1024, 1024, 2048, 2048, 2048, 1024, 512, 256, 128, 128, 128]


@pytest.mark.parametrize(
    ("keys", "most"),
    [
        ({}, MAX_LARGE_BYTES),
        ({"filters": ["digest"]}, MAX_CHUNK_BYTES),
        ({"forward": {"mirror": {"upstream": "up"}}}, MAX_CHUNK_BYTES),
    ],
)
async def test_filters_that_keep_chunks_have_smaller_ones(
    keys: dict[str, Any], most: int, every_lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def record(self: ChunkMemory, body: RawBody, delayed_seconds: float, *, was_taken: bool) -> None:
        seen.append(body.most_bytes)

    monkeypatch.setattr(ChunkMemory, "size_next", record)
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url, **keys)) as gateway:
        await gateway.request(post(form(('name="f"; filename="a"', BODY))))
    assert set(seen) == ({most} if every_lane == "auto" else set())


async def test_files_are_stored_in_large_chunks(
    every_lane: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[int] = []

    def record(self: ChunkMemory, body: RawBody, delayed_seconds: float, *, was_taken: bool) -> None:
        seen.append(body.most_bytes)

    monkeypatch.setattr(ChunkMemory, "size_next", record)
    route = {"name": "store", "match": {"prefix": "/"}, "store": {"directory": str(tmp_path)}}
    async with run_gateway({"routes": [route]}) as gateway:
        response = await gateway.request(post(form(('name="f"; filename="a"', BODY))))
    assert response.startswith(b"HTTP/1.1 201 ")
    assert set(seen) == ({MAX_LARGE_BYTES} if every_lane == "auto" else set())


@pytest.mark.parametrize("received_kib", [1, 128, 1024])
async def test_chunks_of_many_transfers_share_one_memory_limit(received_kib: int) -> None:
    memory, rest = ChunkMemory(), body_without_socket()
    for _ in range(4):
        memory.size_next(rest, 0.0, was_taken=True)
    assert rest.chunk_bytes == 1024 * 1024
    rest.received_bytes = received_kib * 1024
    with contextlib.ExitStack() as stack:
        for _ in range(32):
            stack.enter_context(memory.share())
        memory.size_next(rest, 0.0, was_taken=True)
    assert rest.chunk_bytes == 256 * 1024


async def test_bodies_stay_on_the_copy_lane_without_a_free_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream was once blamed for an upload, and a download was cut as a bug."""

    def fail(descriptor: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), descriptor)

    async def script(wire: Wire) -> None:
        while True:
            await read_request(wire)
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)

    # Only that module's: the listener has a reserve of descriptors.
    monkeypatch.setattr("gateway.transfer.raw_socket.os", SimpleNamespace(**{**vars(os), "dup": fail}))
    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        response = await gateway.request(post(BODY, content_type="text/plain"))
        assert split_response(response)[2] == BODY
        line = await gateway.wait_log_line()
        assert (line["upload"], line["upload_lane"], line["download_lane"]) == ("complete", "copy", "copy")

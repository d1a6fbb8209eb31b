"""Law 10: one body, two lanes. Which one was taken is told; what arrives is the same."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
from typing import cast

import pytest

from gateway.errors import Fault, FaultKind
from gateway.http.chunked import ChunkedDecoder
from gateway.observe.stats import Direction
from gateway.transfer import RawSocket, SizedRawBody
from gateway.transfer.lanes import ChunkMemory
from tests.peers import (
    OK,
    RawUpstream,
    Wire,
    chunked,
    form,
    forward_config,
    post,
    read_request,
    run_gateway,
    split_response,
    wait_until,
)

BODY = os.urandom(3_000_001)


async def send_slowly(wire: Wire, body: bytes) -> None:
    """Send in pieces of any size, with turns for others between them."""
    chance = random.Random(1)
    at = 0
    while at < len(body):
        size = chance.choice((1, 100, 5000, 300_000))
        await wire.send(body[at : at + size])
        at += size
        # A turn for the gateway, so that pieces are not read as one.
        await asyncio.sleep(0)


@pytest.mark.parametrize("kind", ["raw", "form", "chunked form"])
async def test_upload_is_identical_and_its_lane_is_told(kind: str, every_lane: str) -> None:
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        seen.append((await read_request(wire))[1])
        await wire.send(OK)

    body = BODY if kind == "raw" else form(('name="f"; filename="a"', BODY))
    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        request = post(body, content_type="text/plain" if kind == "raw" else "")
        if kind == "chunked form":
            head = request.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
            cuts = [0, 1, 50, 200_000, 200_003, 1_500_000, len(body)]
            request = head + chunked(*(body[a:b] for a, b in itertools.pairwise(cuts)))
        # A chunked body is read below the parser only if its head came in one piece.
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


async def test_downloads_are_identical_and_both_connections_are_kept(every_lane: str) -> None:
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


async def test_bytes_behind_an_upload_are_never_taken_for_its_body(every_lane: str) -> None:
    """Below the transports nobody parses: the connection closes behind the answer, and what was pipelined with it."""
    seen: list[tuple[bytes, bytes]] = []

    async def script(wire: Wire) -> None:
        while True:
            seen.append(await read_request(wire))
            await wire.send(OK)

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        await asyncio.wait_for(upstream.connected.wait(), 5)
        await client.send_all([BODY + b"GET /next HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"])
        response = await client.read_to_end()
        await client.close()
        assert seen[0][1] == BODY
        served = response.count(b"HTTP/1.1 200 OK")
        assert (served, len(seen)) == ((1, 1) if every_lane == "auto" else (2, 2))


async def test_stray_bytes_behind_a_spliced_answer_never_reach_the_next_one() -> None:
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


async def test_copy_is_used_where_the_config_says_so() -> None:
    async def script(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)

    async with RawUpstream(script) as upstream:
        async with run_gateway(forward_config(upstream.url, top={"lanes": "copy"})) as gateway:
            response = await gateway.request(b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
            assert split_response(response)[2] == BODY
            assert (await gateway.wait_log_line())["download_lane"] == "copy"


@pytest.mark.parametrize("count", [1, 2])
async def test_chunked_upload_is_taken_over_below_the_parser_wherever_it_stopped(
    count: int, every_lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder that reads along must agree with the parser, also behind another request on the connection."""
    taken: list[int] = []
    decode = ChunkedDecoder.decode

    def note(self: ChunkedDecoder, received: bytes) -> bytes:
        taken.append(len(received))
        return decode(self, received)

    monkeypatch.setattr(ChunkedDecoder, "decode", note)
    seen: list[bytes] = []

    async def script(wire: Wire) -> None:
        while True:
            seen.append((await read_request(wire))[1])
            await wire.send(OK)

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        # The self-test at start decodes a body, too.
        taken.clear()
        client = await gateway.connect()
        for _ in range(count - 1):
            await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 3\r\n\r\nabc")
            await client.read_until(b"ok")
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n")
        await wait_until(lambda: len(upstream.wires[-1:]) == 1)
        await send_slowly(client, chunked(BODY))
        await client.read_to_end()
        await client.close()
        assert seen[-1] == BODY
        # On the copy lane reading along ends after the first MiB or so.
        assert (sum(taken) == len(chunked(BODY))) == (every_lane == "auto")


def detached_rest() -> SizedRawBody:
    """Return a rest nobody reads from, for what is only said of its size."""
    return SizedRawBody(cast(RawSocket, None), 10**9, lambda: Fault(FaultKind.BUG, ""))


async def test_chunks_grow_while_they_are_taken_and_shrink_while_filters_hold_them() -> None:
    memory, rest, sizes = ChunkMemory(), detached_rest(), []
    for held_seconds, was_taken in [(0.0, True)] * 4 + [(0.0, False)] + [(1.0, True)] * 5 + [(0.0, True)]:
        memory.size_next(rest, held_seconds, was_taken=was_taken)
        sizes.append(rest.chunk_bytes // 1024)
    assert sizes == [256, 512, 1024, 1024, 128, 64, 32, 16, 8, 8, 16]


async def test_chunks_of_many_transfers_share_their_memory() -> None:
    memory, rest = ChunkMemory(), detached_rest()
    with contextlib.ExitStack() as stack:
        for _ in range(32):
            stack.enter_context(memory.share())
        for _ in range(4):
            memory.size_next(rest, 0.0, was_taken=True)
    assert rest.chunk_bytes == 256 * 1024

"""Server-sent events: made once for all readers, none waits for another, and none is left waiting."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from gateway.ops.events import EventStream
from tests.peers import TIMEOUT_SECONDS, Wire, wait_until

BIG = b"x" * 2_000_000


class Maker:
    """Makes events, and counts them."""

    def __init__(self) -> None:
        self.count = 0
        self.failure: Exception | None = None

    async def __call__(self) -> bytes:
        self.count += 1
        if self.failure is not None:
            raise self.failure
        return BIG


class Server:
    """A port that serves the stream of a maker."""

    def __init__(self, maker: Maker, stream: EventStream, port: int) -> None:
        self.maker = maker
        self.stream = stream
        self._port = port
        self.wires: list[Wire] = []

    async def read(self) -> Wire:
        """Connect, and read the head of the response."""
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self._port, limit=2**23))
        self.wires.append(wire)
        await wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await wire.read_head()
        return wire


async def next_number(wire: Wire) -> int:
    """Read to the number of the next event."""
    found = re.search(rb"id: (\d+)", await wire.read_until(b"\ndata: "))
    assert found is not None
    return int(found[1])


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    monkeypatch.setattr("gateway.ops.events._INTERVAL_SECONDS", 0.01)
    maker = Maker()
    stream = EventStream(maker)
    app = web.Application()
    app.router.add_get("/", stream.serve)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server = Server(maker, stream, runner.addresses[0][1])
    yield server
    for wire in server.wires:
        wire.writer.transport.abort()
        await wire.close()
    await stream.close()
    await runner.cleanup()


async def test_one_event_is_made_for_all_and_a_slow_reader_skips(server: Server) -> None:
    slow, fast = await server.read(), await server.read()
    # More than the buffers of a connection hold.
    seen = [await next_number(fast) for _ in range(60)]
    assert seen == sorted(set(seen))
    assert server.maker.count < 2 * seen[-1]
    # The slow one goes on with what was sent to it, and then with the newest.
    numbers = [await next_number(slow)]
    assert numbers[0] <= seen[0]
    while numbers[-1] < seen[-1]:
        numbers.append(await next_number(slow))
    assert len(numbers) < numbers[-1] - numbers[0] + 1


async def test_nothing_is_made_without_a_reader(server: Server) -> None:
    reader = await server.read()
    await next_number(reader)
    reader.writer.transport.abort()
    counts: list[int] = []
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while len(set(counts[-5:])) != 1 or len(counts) < 5:
            counts.append(server.maker.count)
            await asyncio.sleep(0.02)
    again = await server.read()
    assert await next_number(again) == 1


@pytest.mark.expected_log("gateway.ops", "an event could not be made", reason="the test makes it fail")
async def test_readers_are_cut_where_an_event_cannot_be_made_and_the_next_are_served(server: Server) -> None:
    server.maker.failure = RuntimeError("a bug")
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        await (await server.read()).read_to_end()
    server.maker.failure = None
    reader = await server.read()
    assert await next_number(reader) == 1


async def test_further_readers_are_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.ops.events.MAX_READERS", 1)
    first = await server.read()
    await next_number(first)
    second = await server.read()
    assert bytes(second.received).startswith(b"HTTP/1.1 503")


async def test_reader_that_takes_nothing_is_cut(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.ops.events._WRITE_SECONDS", 0.1)
    stuck = await server.read()
    await wait_until(lambda: not server.stream._readers)
    # All that was sent before the cut, and no end of the chunked body.
    assert not (await stuck.read_to_end()).endswith(b"0\r\n\r\n")

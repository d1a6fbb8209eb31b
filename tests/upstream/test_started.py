"""Requests that are sent whole on a kept connection, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from gateway.aiohttp_seam import ClientConnection
from gateway.config import Upstream
from gateway.config.upstream import UpstreamTimeouts
from gateway.config.values import Endpoint
from gateway.errors import Fault, FaultKind
from gateway.http.framing import Framing
from gateway.http.whole_response import WholeResponse
from gateway.observe.stats import EndpointStats, UpstreamStats
from gateway.threads import Threads
from gateway.transfer import Timers
from gateway.upstream import RequestHead, Resolver, Started, UpstreamPool, UpstreamState
from tests.aiohttp_seam.peers import Listening
from tests.peers import TIMEOUT_SECONDS, RawUpstream, Wire, read_request

GET = RequestHead("GET", "/", None, b"", None)
POST = RequestHead("POST", "/", None, b"", Framing(4))
PUT = RequestHead("PUT", "/", None, b"", Framing(4))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\n\r\n"


class Scripted(RawUpstream):
    """Responds to the requests of all connections in turn: with bytes, or by a call that ends the connection."""

    def __init__(self, *responses: bytes | Callable[[Wire], object]) -> None:
        super().__init__(self._respond)
        self._responses = [OK, *responses]
        #: Head and body of each request after the first, which opens a connection.
        self.requests: list[tuple[bytes, bytes]] = []
        self._count = 0

    async def _respond(self, wire: Wire) -> None:
        while True:
            received = await read_request(wire)
            if self._count:
                self.requests.append(received)
            response = self._responses[self._count]
            self._count += 1
            if isinstance(response, bytes):
                await wire.send(response)
            elif (ending := response(wire)) is not None:
                assert asyncio.iscoroutine(ending)
                await ending
                return


@dataclass
class Client:
    """A pool with a kept connection, and its statistics."""

    pool: UpstreamPool
    stats: UpstreamStats

    def start(self, head: RequestHead, body: bytes = b"") -> Started:
        taken = self.pool.take_kept()
        assert taken is not None
        return self.pool.start(*taken, head, body)

    @property
    def endpoint(self) -> EndpointStats:
        return next(iter(self.stats.endpoints.values()))


@contextlib.asynccontextmanager
async def connected(upstream: Scripted, timeouts: UpstreamTimeouts | None = None) -> AsyncIterator[Client]:
    """Yield a pool that has sent a request to the upstream, and kept the connection."""
    timers, stats = Timers(), UpstreamStats("up")
    state = UpstreamState(stats)
    endpoints = (Endpoint("http", "127.0.0.1", upstream.port),)
    config = Upstream(endpoints=endpoints, timeouts=timeouts or UpstreamTimeouts())
    pool = UpstreamPool(config, state, timers, Resolver(Threads("name", 1)))
    pool.activate()
    async with await pool.send(GET, None) as response:
        assert await response.read() == b"ok"
    yield Client(pool, stats)
    await pool.close()
    timers.close()
    state.close()


def connection_of(started: Started) -> ClientConnection:
    assert started.connection is not None
    return started.connection


async def changed(started: Started, *, takes_whole: bool = False) -> WholeResponse | None:
    """Wait until a head was received and parsed, or the connection failed; return a response that came whole."""
    connection = connection_of(started)
    listening = Listening(takes_whole=takes_whole)
    connection.listener = listening
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not (listening.whole or connection.received_head or connection.exception()):
            listening.has_come.clear()
            await listening.has_come.wait()
    connection.listener = None
    return listening.whole


@pytest.mark.parametrize("takes_whole", [True, False], ids=["whole", "parsed"])
@pytest.mark.parametrize(("head", "body"), [(GET, b""), (POST, b"body")])
async def test_response_is_taken_without_a_task_and_the_connection_is_kept(
    head: RequestHead, body: bytes, takes_whole: bool
) -> None:
    async with Scripted(OK, OK) as upstream, connected(upstream) as client:
        for _ in range(2):
            started = client.start(head, body)
            assert client.endpoint.in_flight == 1
            assert client.pool.receive(started) is None
            response = await changed(started, takes_whole=takes_whole) or client.pool.receive(started)
            assert response is not None
            assert (response.status, response.body) == (200, b"ok")
            client.pool.count_response(started, response.status)
            client.pool.release(started, response.status)
            assert client.endpoint.in_flight == 0
        assert [received for _, received in upstream.requests] == [body] * 2
        assert len(upstream.wires) == 1
        assert client.endpoint.requests[200] == 3
        assert sum(client.stats.response_seconds.counts) == 3


async def test_request_goes_on_as_if_it_had_been_sent_there() -> None:
    async with Scripted(EARLY_HINTS + OK) as upstream, connected(upstream) as client:
        started = client.start(GET)
        await changed(started)
        assert client.pool.receive(started) is None, "an interim response"
        async with await client.pool.send(GET, None, started=started) as response:
            assert await response.read() == b"ok"
        assert client.endpoint.requests[200] == 2
        assert client.endpoint.in_flight == 0
        assert len(upstream.wires) == 1


async def test_head_whose_framing_is_refused_is_left_to_the_fault() -> None:
    bad = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    async with Scripted(bad) as upstream, connected(upstream) as client:
        started = client.start(GET)
        await changed(started)
        assert client.pool.receive(started) is None
        with pytest.raises(Fault) as caught:
            await client.pool.send(GET, None, started=started)
        assert caught.value.kind is FaultKind.BAD_RESPONSE
        assert client.endpoint.in_flight == 0


@pytest.mark.parametrize("end", [Wire.close, Wire.reset], ids=["close", "reset"])
@pytest.mark.parametrize(("head", "body"), [(GET, b""), (PUT, b"body")])
async def test_repeatable_request_whose_connection_ended_is_sent_again(
    end: Callable[[Wire], object], head: RequestHead, body: bytes
) -> None:
    async with Scripted(end, OK) as upstream, connected(upstream) as client:
        started = client.start(head, body)
        await changed(started)
        assert client.pool.receive(started) is None
        async with await client.pool.send(head, None, started=started) as response:
            assert await response.read() == b"ok"
        assert [received for _, received in upstream.requests] == [body] * 2
        assert client.stats.retries["stale_connection"] == 1


async def test_post_whose_connection_ended_is_never_sent_again() -> None:
    async with Scripted(Wire.close) as upstream, connected(upstream) as client:
        started = client.start(POST, b"body")
        with pytest.raises(Fault) as caught:
            await client.pool.send(POST, None, started=started)
        assert caught.value.kind is FaultKind.UPSTREAM_CLOSED
        assert len(upstream.requests) == 1
        assert client.endpoint.requests["upstream_closed"] == 1


async def test_response_timeout_of_a_started_request_runs_since_it_was_sent() -> None:
    async with Scripted(Wire.read_to_end) as upstream, connected(upstream, UpstreamTimeouts(response=60)) as client:
        started = client.start(POST, b"body")
        started.sent_at -= 60
        with pytest.raises(Fault) as caught:
            await client.pool.send(POST, None, started=started)
        assert caught.value.kind is FaultKind.RESPONSE_TIMEOUT


async def test_started_request_that_is_cancelled_closes_its_connection() -> None:
    async with Scripted(Wire.read_to_end) as upstream, connected(upstream) as client:
        started = client.start(POST, b"body")
        sending = asyncio.create_task(client.pool.send(POST, None, started=started))
        await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await upstream.wait_finished()
        assert client.endpoint.requests["cancelled"] == 1
        assert client.endpoint.in_flight == 0


async def test_without_a_kept_connection_nothing_has_changed() -> None:
    async with Scripted(OK) as upstream, connected(upstream) as client:
        taken = client.pool.take_kept()
        assert taken is not None
        assert client.pool.take_kept() is None
        assert client.endpoint.in_flight == 0
        taken[1].release()
        async with await client.pool.send(GET, None) as response:
            assert await response.read() == b"ok"
        assert len(upstream.wires) == 1

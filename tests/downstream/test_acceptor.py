"""The acceptor: a few connections per wake-up, a pause where descriptors run out, and none lost meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from gateway.downstream.acceptor import Acceptor, half_of_descriptors, raise_descriptor_limit
from tests.aiohttp_seam.peers import settle
from tests.peers import OK, RawUpstream, forward_config, responding, run_gateway, wait_until

GET = b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n"
expected_pause = pytest.mark.expected_log("gateway", "accepting on port", reason="what the test is about")


class Connections:
    """Makes the protocols of an acceptor and keeps those that are connected."""

    def __init__(self) -> None:
        self.open: list[asyncio.Transport] = []
        self.made = 0
        self.accepted = 0
        self.acceptor: Acceptor

    def __call__(self) -> asyncio.Protocol:
        connections = self
        self.made += 1

        class Connection(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                self.transport = transport
                connections.open.append(transport)
                connections.accepted += 1
                connections.acceptor.connection_made(self)

            def connection_lost(self, exc: BaseException | None) -> None:
                connections.open.remove(self.transport)
                connections.acceptor.connection_closed()

        return Connection()

    async def wait_accepted(self, count: int) -> None:
        await wait_until(lambda: self.accepted == count)


def lowest_free() -> int:
    """Return the number that the next descriptor gets."""
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


@contextlib.contextmanager
def descriptor_limit(limit: int) -> Iterator[None]:
    """Let this process open no descriptor with this number or a higher one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.asynccontextmanager
async def queued_clients(count: int) -> AsyncIterator[tuple[socket.socket, list[socket.socket]]]:
    """Yield a listener and clients that wait in its queue, then close them all."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
        yield listener, [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(count)]


@contextlib.asynccontextmanager
async def accepting(listener: socket.socket, **options: Any) -> AsyncIterator[Connections]:
    connections = Connections()
    options.setdefault("open_connections", lambda: len(connections.open))
    connections.acceptor = Acceptor(listener, connections, **options)
    try:
        yield connections
    finally:
        await connections.acceptor.close()
        for transport in connections.open:
            transport.abort()
        await settle()


async def test_few_connections_are_accepted_per_turn_of_the_loop() -> None:
    """asyncio's server accepts as many as its backlog is long."""
    async with queued_clients(20) as (listener, _), accepting(listener) as connections:
        counts = set()
        while len(connections.open) < 20:
            before = len(connections.open)
            await asyncio.sleep(0)
            counts.add(len(connections.open) - before)
        assert max(counts) <= 8


async def test_paused_acceptor_leaves_clients_in_the_queue_until_it_is_resumed() -> None:
    async with queued_clients(2) as (listener, _), accepting(listener) as connections:
        connections.acceptor.pause()
        await settle()
        assert not connections.open
        connections.acceptor.resume()
        await wait_until(lambda: len(connections.open) == 2)


class Share:
    """An AcceptShare whose answer is `may_take`; `left` is how long each connection was left that it was asked for."""

    def __init__(self) -> None:
        self.may_take = False
        self.left: list[float] = []
        self.is_accepting = False
        self.open = 0

    def total(self) -> int:
        return self.open

    def reserve(self, limit: int) -> bool:
        return self.open < limit

    def end_reservation(self, *, is_accepted: bool) -> None:
        self.count(is_accepted)

    def may_accept(self, left_seconds: float) -> bool:
        self.left.append(left_seconds)
        return self.may_take

    def set_accepting(self, *, is_accepting: bool) -> None:
        self.is_accepting = is_accepting

    def count(self, change: int) -> None:
        self.open += change


async def test_connection_is_left_to_others_as_long_as_the_share_demands_it() -> None:
    share = Share()
    async with queued_clients(1) as (listener, _), accepting(listener, share=share) as connections:
        await wait_until(lambda: len(share.left) > 5)
        assert not connections.open
        assert share.left == sorted(share.left)
        assert share.left[0] == 0.0
        assert share.left[-1] > 0.0
        share.may_take = True
        await connections.wait_accepted(1)
    assert share.open == 0


async def test_time_for_which_a_connection_is_left_begins_anew_after_another_process_has_taken_one() -> None:
    share = Share()
    async with queued_clients(1) as (listener, _), accepting(listener, share=share):
        await wait_until(lambda: len(share.left) > 5)
        listener.accept()[0].close()
        await asyncio.sleep(0.01)  # due after the next look, which sees that the queue is empty
        count = len(share.left)
        with socket.create_connection(listener.getsockname()):
            await wait_until(lambda: len(share.left) > count)
            assert share.left[count] == 0.0


async def test_share_records_whether_connections_are_accepted() -> None:
    share = Share()
    async with queued_clients(0) as (listener, _), accepting(listener, share=share) as connections:
        assert share.is_accepting
        connections.acceptor.pause()
        assert not share.is_accepting
        connections.acceptor.resume()
        assert share.is_accepting
    assert not share.is_accepting


async def test_connections_are_counted_between_accept_and_their_protocol() -> None:
    """A worker that recorded its load in between recorded too little, and got too many of a burst."""
    async with queued_clients(20) as (listener, _), accepting(listener) as connections:
        connecting = set()
        while len(connections.open) < 20:
            await asyncio.sleep(0)
            assert connections.acceptor.connection_count == connections.made
            connecting.add(connections.made - len(connections.open))
        assert max(connecting) > 0


@expected_pause
async def test_burst_of_clients_does_not_exceed_the_limit() -> None:
    """Those whose protocol is connected in the next turn of the loop were not counted: 16 of 10 were accepted."""
    async with queued_clients(30) as (listener, _), accepting(listener, max_connections=lambda: 10) as connections:
        await connections.wait_accepted(10)
        await settle()
        assert connections.made == 10
        for transport in connections.open[:3]:
            transport.abort()
        await connections.wait_accepted(13)
        await settle()
        assert connections.made == 13


async def test_nothing_is_closed_or_pauses_at_the_limit_while_no_client_waits(caplog: pytest.LogCaptureFixture) -> None:
    """Of several workers, that which took the last place closed idle connections ten times a second."""
    share = Share()
    share.may_take = True
    rooms: list[None] = []
    options: dict[str, Any] = {"max_connections": lambda: 3, "make_room": lambda: rooms.append(None)}
    async with queued_clients(3) as (listener, _), accepting(listener, share=share, **options) as connections:
        await connections.wait_accepted(3)
        await settle()
        assert not rooms
        assert share.is_accepting
        assert not caplog.records


@expected_pause
async def test_pause_ends_when_another_process_has_accepted_the_client_that_waited() -> None:
    share = Share()
    share.may_take = True
    async with queued_clients(2) as (listener, _):
        async with accepting(listener, share=share, max_connections=lambda: 1) as connections:
            await wait_until(lambda: not share.is_accepting)
            listener.accept()[0].close()
            await wait_until(lambda: share.is_accepting)
            assert connections.made == 1


# Threads that tests before have left to end, such as name lookups, open and close descriptors at any time. So these
# tests have more clients than descriptors, and count none.


@expected_pause
async def test_clients_get_no_kept_descriptor_and_the_next_one_is_accepted_when_one_closes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first_kept = lowest_free() + 30
    async with queued_clients(20) as (listener, _), accepting(listener, first_kept=first_kept) as connections:
        while connections.accepted < 20:
            count = connections.accepted
            await wait_until(lambda: caplog.records and connections.accepted > count)  # noqa: B023 (called here only)
            await settle()
            assert all(transport.get_extra_info("socket").fileno() < first_kept for transport in connections.open)
            connections.open[0].abort()
    assert len(caplog.records) == 1


@expected_pause
async def test_acceptor_without_a_descriptor_pauses_with_one_log_line_and_recovers_by_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """asyncio's server wrote one record per failed call, 138,000 in five seconds."""
    async with queued_clients(20) as (listener, _), accepting(listener) as connections:
        with descriptor_limit(lowest_free() + 2):
            await wait_until(lambda: caplog.records)
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(connections.open) < 20
            assert "Too many open files" in caplog.text
        # No connection closed: the acceptor tries again.
        await wait_until(lambda: len(connections.open) == 20)
        assert len(caplog.records) == 1


class ExhaustedSocket(socket.socket):
    """A listener that the system accepts nothing for, until `error` is 0."""

    error = 0
    failures = 0

    def accept(self) -> tuple[socket.socket, Any]:
        if self.error:
            self.failures += 1
            raise OSError(self.error, os.strerror(self.error))
        return super().accept()


@expected_pause
@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_acceptor_pauses_where_the_system_has_nothing_left_and_recovers_by_itself(
    error: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with queued_clients(3) as (listener, _):
        with ExhaustedSocket(fileno=os.dup(listener.fileno())) as exhausted:
            exhausted.error = error
            async with accepting(exhausted, spares=1) as connections:
                # The spare is given back first; a system that is full does not care.
                await wait_until(lambda: exhausted.failures >= 2)
                for _ in range(100):
                    await asyncio.sleep(0)
                assert exhausted.failures <= 3
                assert connections.accepted == 0
                assert [os.strerror(error) in record.getMessage() for record in caplog.records] == [True]
                exhausted.error = 0
                await connections.wait_accepted(3)
                assert len(caplog.records) == 1


async def test_connection_that_is_gone_before_it_is_accepted_stops_nothing() -> None:
    async with queued_clients(2) as (listener, _):
        with ExhaustedSocket(fileno=os.dup(listener.fileno())) as aborted:
            aborted.error = errno.ECONNABORTED
            async with accepting(aborted) as connections:
                await wait_until(lambda: aborted.failures >= 2)
                aborted.error = 0
                await connections.wait_accepted(2)


@expected_pause
async def test_spare_descriptors_let_clients_in_where_no_other_is_free_and_are_taken_back() -> None:
    async with queued_clients(20) as (listener, _), accepting(listener, spares=2) as connections:
        with descriptor_limit(lowest_free()):
            await wait_until(lambda: connections.accepted >= 2)
            await settle()
            while (count := connections.accepted) < 20:
                for transport in connections.open:
                    transport.abort()
                await wait_until(lambda: connections.accepted > count)


@expected_pause
async def test_clients_over_the_limit_wait_in_the_queue_until_one_closes() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        config = forward_config(upstream.url, top={"max_connections": 2})
        async with run_gateway(config) as gateway:
            # Within a request head: neither is idle.
            clients = [await gateway.connect() for _ in range(2)]
            for client in clients:
                await client.send(GET)
                await client.read_until(b"ok")
                await client.send(b"G")
            await settle()
            third = await gateway.connect()
            await third.send(GET)
            await settle()
            assert gateway.gateway._traffic.open_connections == 2
            await clients[0].close()
            await third.read_until(b"ok")
            assert gateway.gateway._traffic.open_connections == 2
            for client in (clients[1], third):
                await client.close()


@expected_pause
async def test_idle_connections_are_closed_for_clients_that_wait() -> None:
    """They kept newcomers out for up to a minute."""
    async with RawUpstream(responding(OK)) as upstream:
        config = forward_config(upstream.url, top={"max_connections": 2})
        async with run_gateway(config) as gateway:
            idle, busy = [await gateway.connect() for _ in range(2)]
            for client in (idle, busy):
                await client.send(GET)
                await client.read_until(b"ok")
            await busy.send(b"G")
            await settle()
            third = await gateway.connect()
            await third.send(GET)
            await third.read_until(b"ok")
            assert await idle.read_some() == b""
            await busy.send(GET[1:])
            await busy.read_until(b"ok")
            for client in (idle, busy, third):
                await client.close()


@expected_pause
async def test_stopped_acceptor_that_had_paused_tries_nothing_when_a_connection_closes() -> None:
    """It tried ten times a second, for as long as the process stayed after GET /drain."""
    async with queued_clients(2) as (listener, _), accepting(listener) as connections:
        await connections.wait_accepted(2)
        acceptor = connections.acceptor
        acceptor._exhaust("of the test")
        acceptor.stop()
        acceptor.connection_closed()
        assert acceptor._retry is not None
        assert acceptor._retry.cancelled()


async def test_clients_in_the_queue_can_be_accepted_before_the_socket_is_closed() -> None:
    async with queued_clients(30) as (listener, clients), accepting(listener) as connections:
        await connections.acceptor.accept_queued()
        connections.acceptor.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(clients[0].getpeername())
        await settle()
        assert len(connections.open) == 30


async def test_clients_in_the_queue_are_accepted_a_few_per_turn_of_the_loop_before_the_socket_is_closed() -> None:
    """All were accepted in one turn: 4,000 took 0.35 s, in which no transfer moved a byte."""
    async with queued_clients(60) as (listener, _), accepting(listener) as connections:
        accepting_last = asyncio.ensure_future(connections.acceptor.accept_queued())
        counts = set()
        while not accepting_last.done():
            before = connections.made
            # One iteration of the loop, in which connections are counted.
            await asyncio.sleep(0)
            counts.add(connections.made - before)
        # As many by the reader of the socket.
        assert max(counts) <= 16
        assert accepting_last.result()
        assert connections.made == 60


def test_limit_of_descriptors_is_raised_to_the_highest_and_half_of_it_is_for_clients() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with descriptor_limit(min(soft, 512)):
        assert half_of_descriptors() == min(soft, 512) // 2
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard

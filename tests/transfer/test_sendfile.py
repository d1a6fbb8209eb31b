"""A file is sent from callback to callback of the loop; the task waits for its end, for the disk, or for its own."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gateway.errors import Fault, FaultKind, Outcome
from gateway.observe.stats import Direction, Leg, RouteStats
from gateway.observe.waits import Waits
from gateway.transfer import LegLimits, RawSocket, Timers, Transfer, TransferPolicy, Turns, open_raw_socket
from gateway.transfer.pump import pump
from gateway.transfer.sendfile import SendfileLane

POLICY = TransferPolicy(Direction.DOWNLOAD, Leg.DISK_READ, Leg.DOWNSTREAM_WRITE, LegLimits(idle_seconds=60.0))
MIB = 2**20


class Owner:
    """The owner of a transfer that somebody cancels."""

    is_delivered = False

    def why_cancelled(self) -> Fault:
        return Fault(FaultKind.CLIENT_LEFT, "left")


class MemoryFile:
    """A file of zeros whose first bytes are in memory, and which counts its calls."""

    def __init__(self, size: int, cached_bytes: int, step_bytes: int = MIB) -> None:
        self._left = size
        self._cached_bytes = cached_bytes
        self._step_bytes = step_bytes
        self.has_filled_socket = False
        self.was_full = asyncio.Event()
        self.sent: list[int] = []
        self.read_count = 0
        self.error: BaseException | None = None

    def send_ready(self, descriptor: int) -> int | None:
        if self.error is not None:
            raise self.error
        size = min(self._step_bytes, self._left, self._cached_bytes)
        if not size:
            return None
        try:
            count = os.write(descriptor, bytes(size))
        except BlockingIOError:
            count = 0
        self.has_filled_socket = count < size
        if self.has_filled_socket:
            self.was_full.set()
        self._left -= count
        self._cached_bytes -= count
        self.sent.append(count)
        return count

    async def read_cold(self) -> None:
        # As a thread that reads, it lets the loop go on.
        await asyncio.sleep(0)
        self.read_count += 1
        self._cached_bytes = self._step_bytes


class Client:
    """Fails to receive, as a sink says it."""

    def translate_error(self, exc: OSError) -> Fault:
        return Fault(FaultKind.CLIENT_LEFT, str(exc))


class Connection:
    """A connection: the gateway's side as a raw socket, the client's as streams."""

    def __init__(self, socket: RawSocket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.socket = socket
        self.reader = reader
        self.writer = writer

    async def receive(self, size: int) -> int:
        return len(await self.reader.readexactly(size))


@pytest.fixture
async def connection() -> AsyncIterator[Connection]:
    accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    ours = await accepted
    socket = open_raw_socket(ours.transport)
    assert socket is not None
    yield Connection(socket, reader, writer)
    socket.close()
    for each in (writer, ours):
        each.close()
    server.close()
    await server.wait_closed()


@pytest.fixture
def timers() -> Timers:
    return Timers()


def make_transfer(timers: Timers, length: int) -> Transfer:
    unused: Any = None
    return Transfer(POLICY, unused, Waits(RouteStats("r")), timers, owner=Owner(), length=length)


async def send(timers: Timers, file: MemoryFile, connection: Connection, length: int) -> Transfer:
    with make_transfer(timers, length) as transfer:
        await pump(transfer, SendfileLane(transfer, file, connection.socket, Client()))
    timers.close()
    return transfer


def is_watched(socket: RawSocket) -> bool:
    """Return whether the loop calls when the socket is writable, and stop it."""
    return asyncio.get_running_loop().remove_writer(socket.descriptor)


@pytest.mark.parametrize("cached_bytes", [0, 3 * MIB, 20 * MIB])
async def test_every_byte_is_sent_and_counted(timers: Timers, connection: Connection, cached_bytes: int) -> None:
    file = MemoryFile(20 * MIB, cached_bytes)
    sending = asyncio.create_task(send(timers, file, connection, 20 * MIB))
    assert await connection.receive(20 * MIB) == 20 * MIB
    transfer = await sending
    assert (transfer.moved_bytes, transfer.outcome) == (20 * MIB, Outcome.COMPLETE)
    assert file.read_count == (20 * MIB - cached_bytes) / MIB
    assert not is_watched(connection.socket)


async def test_full_socket_is_left_alone_until_it_takes_bytes(timers: Timers, connection: Connection) -> None:
    """Each call that sent a part was followed by one that sent nothing."""
    file = MemoryFile(64 * MIB, 64 * MIB, step_bytes=8 * MIB)
    sending = asyncio.create_task(send(timers, file, connection, 64 * MIB))
    assert await connection.receive(64 * MIB) == 64 * MIB
    await sending
    assert len(file.sent) > 8
    assert all(file.sent)


async def test_small_file_is_sent_without_asking_the_selector(
    timers: Timers, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_socket: RawSocket, _callback: Callable[[], None]) -> None:
        raise AssertionError

    monkeypatch.setattr(RawSocket, "call_when_writable", refuse)
    await send(timers, MemoryFile(300_000, 300_000), connection, 300_000)
    assert await connection.receive(300_000) == 300_000


async def test_cancelled_while_the_socket_is_full_it_sends_no_more(timers: Timers, connection: Connection) -> None:
    file = MemoryFile(64 * MIB, 64 * MIB, step_bytes=16 * MIB)
    sending = asyncio.create_task(send(timers, file, connection, 64 * MIB))
    await file.was_full.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert not is_watched(connection.socket)
    sent = list(file.sent)
    await connection.receive(sum(sent))
    # The loop sees that the socket takes bytes, and would call.
    for _ in range(3):
        await asyncio.sleep(0)
    assert file.sent == sent


async def test_bodies_that_wait_have_their_turn_before_each_call(timers: Timers, connection: Connection) -> None:
    now = 0.0
    order: list[str] = []
    timers.turns = turns = Turns(lambda: now)
    file = MemoryFile(2 * MIB, 2 * MIB, step_bytes=MIB // 4)

    real = file.send_ready

    def send_ready(descriptor: int) -> int | None:
        nonlocal now
        now += 0.005
        order.append("file")
        return real(descriptor)

    async def work() -> None:
        nonlocal now
        while True:
            await turns.wait()
            now += 0.005
            order.append("other")

    file.send_ready = send_ready  # type: ignore[method-assign]  # counted
    other = asyncio.create_task(work())
    # It begins to wait for a turn.
    await asyncio.sleep(0)
    sending = asyncio.create_task(send(timers, file, connection, 2 * MIB))
    await connection.receive(2 * MIB)
    await sending
    other.cancel()
    assert order.count("file") >= 8
    assert "file file file" not in " ".join(order)


async def test_cancelled_while_it_waits_for_a_turn_it_sends_no_more(
    timers: Timers, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = MemoryFile(MIB, MIB, step_bytes=1000)
    is_waiting = asyncio.Event()
    steps: list[Callable[[], None]] = []

    def call(step: Callable[[], None]) -> None:
        steps.append(step)
        is_waiting.set()

    monkeypatch.setattr(timers.turns, "has_time_for_event", lambda: False)
    monkeypatch.setattr(timers.turns, "call", call)
    sending = asyncio.create_task(send(timers, file, connection, MIB))
    await is_waiting.wait()
    assert not is_watched(connection.socket)
    sending.cancel()
    steps[0]()
    with pytest.raises(asyncio.CancelledError):
        await sending
    steps[0]()
    assert file.sent == [1000]
    assert not is_watched(connection.socket)


@pytest.mark.parametrize(
    ("error", "raised", "outcome"),
    [
        (Fault(FaultKind.DISK_FAILED, "shorter"), Fault, Outcome.DISK_FAILED),
        (ConnectionResetError(errno.ECONNRESET, "reset"), Fault, Outcome.CLIENT_LEFT),
        (ZeroDivisionError(), ZeroDivisionError, Outcome.BUG),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
async def test_failure_of_a_call_ends_the_transfer(
    timers: Timers,
    connection: Connection,
    error: BaseException,
    raised: type[BaseException],
    outcome: Outcome,
    *,
    is_first: bool,
) -> None:
    """Also one in a callback of the loop, where nothing awaits it."""
    file = MemoryFile(64 * MIB, 64 * MIB, step_bytes=16 * MIB)
    transfer = make_transfer(timers, 64 * MIB)

    async def run() -> None:
        with transfer:
            await pump(transfer, SendfileLane(transfer, file, connection.socket, Client()))

    if is_first:
        file.error = error
    sending = asyncio.create_task(run())
    if not is_first:
        await connection.receive(1)
        file.error = error
    with pytest.raises(raised):
        await asyncio.gather(sending, connection.reader.readexactly(sum(file.sent) - 1 if file.sent else 0))
    assert transfer.outcome is outcome
    assert not is_watched(connection.socket)
    timers.close()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Fault(FaultKind.DISK_FAILED, "shorter"), Outcome.DISK_FAILED),
        (OSError(errno.EIO, "cannot be read"), Outcome.BUG),
    ],
)
async def test_failure_of_a_call_counts_where_the_task_is_cancelled_in_the_same_iteration(
    timers: Timers, connection: Connection, error: Exception, outcome: Outcome
) -> None:
    """The client that left was blamed for a file that cannot be read."""
    file = MemoryFile(64 * MIB, 64 * MIB, step_bytes=16 * MIB)
    transfer = make_transfer(timers, 64 * MIB)

    class Disk(Client):
        def translate_error(self, exc: OSError) -> Fault:
            return Fault(FaultKind.BUG, str(exc))

    async def run() -> None:
        with transfer:
            await pump(transfer, SendfileLane(transfer, file, connection.socket, Disk()))

    real = file.send_ready

    def send_ready(descriptor: int) -> int | None:
        if file.was_full.is_set():
            file.error = error
            # Before the task is woken.
            asyncio.get_running_loop().call_soon(sending.cancel)
        return real(descriptor)

    file.send_ready = send_ready  # type: ignore[method-assign]  # fails once the socket was full
    sending = asyncio.create_task(run())
    await file.was_full.wait()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.gather(sending, connection.receive(sum(file.sent)))
    assert transfer.outcome is outcome
    assert not is_watched(connection.socket)
    timers.close()

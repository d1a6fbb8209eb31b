"""How a file is sent: what the event loop sends by itself, and how much of it in one call."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.errors import Fault, Outcome
from gateway.storage.cached_pieces import CachedPieces
from gateway.storage.file import FileReader, open_for_reading
from gateway.storage.page_cache import PageCache
from gateway.storage.threads import Disks
from tests.clock import Clock
from tests.peers import wait_until
from tests.slow_disk import evict

MIB = 2**20
DATA = os.urandom(MIB) * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def make_reader(path: Path, clock: Clock) -> Iterator[Callable[[], FileReader]]:
    disks = Disks()

    pieces = CachedPieces(clock)

    def make() -> FileReader:
        file = open_for_reading(path.parent, path.name, pieces)
        return FileReader(disks.of(str(path.parent), 60.0), file, clock, clock)

    yield make
    disks.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    sender, receiver = socket.socketpair()
    with sender, receiver:
        sender.setblocking(False)
        receiver.setblocking(False)
        yield sender, receiver


async def send_once(reader: FileReader, descriptor: int) -> int:
    """Send once; read from the disk before, if need be."""
    sent = reader.send_ready(descriptor)
    if sent is None:
        await reader.read_cold()
        sent = reader.send_ready(descriptor)
    assert sent is not None
    return sent


def receive(receiver: socket.socket) -> bytes:
    received = b""
    try:
        while data := receiver.recv(MIB):
            received += data
    except BlockingIOError:
        pass
    return received


@pytest.mark.parametrize("is_remembered", [False, True])
async def test_bytes_dropped_from_memory_in_the_midst_of_a_file_are_read_by_a_thread(
    make_reader: Callable[[], FileReader],
    clock: Clock,
    path: Path,
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_remembered: bool,
) -> None:
    if is_remembered:
        earlier, sent = make_reader(), 0
        sink = os.open(os.devnull, os.O_WRONLY)
        while sent < len(DATA):
            sent += await send_once(earlier, sink)
        os.close(sink)
        await earlier.close()
    cold: list[tuple[int, int]] = []
    real = os.sendfile

    def check(out: int, file: int, at: int, size: int) -> int:
        pages = PageCache(file, os.geteuid(), len(DATA))
        if pages.count_cached(at, size) < size:
            cold.append((at, size))
        pages.close()
        return real(out, file, at, size)

    monkeypatch.setattr(os, "sendfile", check)
    sender, receiver = pair
    reader = make_reader()
    received, sent, evicted_count = b"", 0, 0
    while sent < len(DATA) // 8:
        count = await send_once(reader, sender.fileno())
        sent += count
        if not count:
            # The socket is full: the client is slow.
            received += receive(receiver)
            clock.now += 1
            await asyncio.to_thread(evict, path)
            evicted_count += 1
    await reader.close()
    assert received + receive(receiver) == DATA[:sent]
    assert evicted_count > 1
    assert not cold
    await wait_until(lambda: str(path) not in Path("/proc/self/maps").read_text())


@pytest.mark.parametrize(("bytes_per_second", "largest"), [(0.5e9, MIB), (1e9, 2 * MIB), (1e12, 4 * MIB)])
async def test_one_call_sends_no_more_than_takes_two_and_a_half_milliseconds(
    make_reader: Callable[[], FileReader],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    bytes_per_second: float,
    largest: int,
) -> None:
    """Calls of 4 MiB held the loop for 8 ms where a processor moves 0.5 GB in a second."""
    sizes = []

    def send(_out: int, _file: int, _at: int, size: int) -> int:
        clock.now += size / bytes_per_second
        sizes.append(size)
        return size

    monkeypatch.setattr(os, "sendfile", send)
    reader = make_reader()
    sent = 0
    while sent < len(DATA):
        sent += await send_once(reader, -1)
    await reader.close()
    assert sent == len(DATA)
    assert max(sizes[4:]) <= largest
    assert max(sizes) >= largest


async def test_calls_are_not_cut_short_where_a_look_at_the_page_cache_ends(
    make_reader: Callable[[], FileReader], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that were left of each look were sent by a call of their own, 80 more of them per GB."""
    asked, looked = [], 0
    real = PageCache.count_cached

    def send(_out: int, _file: int, _at: int, size: int) -> int:
        clock.now += 0.001
        asked.append(size)
        return min(size, 3 * MIB)

    def count(pages: PageCache, at: int, size: int) -> int:
        nonlocal looked
        looked += size
        return real(pages, at, size)

    monkeypatch.setattr(os, "sendfile", send)
    monkeypatch.setattr(PageCache, "count_cached", count)
    reader = make_reader()
    sent = 0
    while sent < len(DATA):
        sent += await send_once(reader, -1)
    await reader.close()
    assert asked[1:-1] == [4 * MIB] * (len(asked) - 2)
    assert looked <= 1.25 * len(DATA)


async def test_socket_that_took_less_than_there_was_is_waited_for_at_once(
    make_reader: Callable[[], FileReader], clock: Clock, path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    sender, receiver = pair
    reader = make_reader()
    first = await send_once(reader, sender.fileno())
    assert 0 < first < 4 * MIB
    assert reader.has_filled_socket
    assert await send_once(reader, sender.fileno()) == 0
    assert reader.has_filled_socket
    receive(receiver)
    # A thread reads the next chunk, which is larger than the socket's buffer as well.
    clock.now += 1
    await asyncio.to_thread(evict, path)
    assert await send_once(reader, sender.fileno())
    assert reader.has_filled_socket
    await reader.close()


@pytest.mark.parametrize(
    ("number", "raised"),
    [(errno.EIO, Fault), (errno.ESTALE, Fault), (errno.ECONNRESET, OSError), (errno.EPIPE, OSError)],
)
async def test_file_that_cannot_be_read_is_not_the_clients_fault(
    make_reader: Callable[[], FileReader], monkeypatch: pytest.MonkeyPatch, number: int, raised: type[Exception]
) -> None:
    """It was: client_left."""

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "sendfile", fail)
    reader = make_reader()
    with pytest.raises(raised) as caught:
        await send_once(reader, -1)
    await reader.close()
    assert not isinstance(caught.value, Fault) or caught.value.outcome is Outcome.DISK_FAILED


async def test_end_of_a_file_fills_no_socket(
    make_reader: Callable[[], FileReader], pair: tuple[socket.socket, socket.socket]
) -> None:
    reader = make_reader()
    reader.select(len(DATA) - 1000, len(DATA) - 1)
    assert await send_once(reader, pair[0].fileno()) == 1000
    assert not reader.has_filled_socket
    await reader.close()

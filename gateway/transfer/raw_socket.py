"""A plain TCP connection, read and written below its asyncio transport.

The transport keeps the connection. `RawSocket` is a second descriptor of the same socket, since asyncio allows no
reader or writer beside a transport's; closing it closes only that descriptor.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.aiohttp_seam import is_plain_tcp
from gateway.transfer.progress import acknowledged_bytes
from gateway.transfer.turns import Turns

#: Fewer, larger chunks cost less while the sink keeps up; a sink that does not gets smaller ones, so that many slow
#: transfers hold little memory. Measured: docs/benchmarks.md.
MIN_CHUNK_BYTES: Final = 2**17
MAX_CHUNK_BYTES: Final = 2**20
#: For chunks that are passed on and kept by nothing, and those that are stored.
MAX_LARGE_BYTES: Final = 2**21


def open_raw_socket(transport: asyncio.BaseTransport | None, *, is_chunked: bool = False) -> RawSocket | None:
    """Return a second descriptor of a transport's socket; None if it is no open, plain TCP connection.

    None also where the process is out of descriptors: the body stays on the copy lane.
    """
    if transport is None or not is_plain_tcp(transport):
        return None
    try:
        return RawSocket(transport, is_chunked=is_chunked)
    except OSError:
        return None


class RawSocket:
    """A second descriptor of a transport's socket. Close it after use.

    With `is_chunked`, data is sent in the chunked coding (RFC 9112 section 7.1), one chunk per call; the last chunk is
    sent by the writer that sent the head.
    """

    def __init__(self, transport: asyncio.BaseTransport, *, is_chunked: bool = False) -> None:
        self.is_chunked = is_chunked
        self._loop = asyncio.get_running_loop()
        self._sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        self._sock.setblocking(False)
        #: Where waits for the peer end with a turn; None where nothing is moved in a loop.
        self.turns: Turns | None = None

    @property
    def descriptor(self) -> int:
        """The descriptor, for splice."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the descriptor; the connection stays."""
        self._sock.close()

    def acknowledged(self) -> int:
        """Return the progress of the peer, see `gateway.transfer.progress`."""
        return acknowledged_bytes(self._sock)

    async def receive(self, size: int) -> bytes:
        """Return what was received, at most `size` bytes, b"" after the peer's end. Raises OSError."""
        while True:
            try:
                return self._sock.recv(size)
            except BlockingIOError:
                await self.wait_readable()

    def try_receive_into(self, buffers: Sequence[bytearray | memoryview]) -> int | None:
        """Receive into buffers; return the byte count, 0 after the peer's end, None if there is nothing now.

        Raises OSError.
        """
        try:
            return self._sock.recvmsg_into(buffers)[0]
        except BlockingIOError:
            return None

    async def send(self, chunk: bytes) -> bool:
        """Send a whole chunk; return, once the kernel has it, whether it took it at once. Raises OSError."""
        if self.is_chunked:
            return await self._send_pieces([b"%x\r\n" % len(chunk), chunk, b"\r\n"])
        try:
            sent = self._sock.send(chunk)
        except BlockingIOError:
            sent = 0
        if sent == len(chunk):
            return True
        await self._send_rest([memoryview(chunk)], sent)
        return False

    async def _send_pieces(self, pieces: list[bytes]) -> bool:
        try:
            sent = self._sock.sendmsg(pieces)
        except BlockingIOError:
            sent = 0
        if sent == sum(map(len, pieces)):
            return True
        await self._send_rest([memoryview(piece) for piece in pieces], sent)
        return False

    async def _send_rest(self, pieces: list[memoryview], sent: int) -> None:
        """Send the rest of pieces of which `sent` bytes are sent."""
        while pieces := _skip(pieces, sent):
            await self.wait_writable()
            try:
                sent = self._sock.sendmsg(pieces)
            except BlockingIOError:
                sent = 0

    async def wait_readable(self) -> None:
        """Wait until bytes or the peer's end can be read."""
        await self._wait(self._loop.add_reader, self._loop.remove_reader)

    async def wait_writable(self) -> None:
        """Wait until the kernel takes bytes, or the connection is broken."""
        await self._wait(self._loop.add_writer, self._loop.remove_writer)

    def call_when_writable(self, callback: Callable[[], None]) -> None:
        """Call a function in each iteration of the loop in which the kernel takes bytes, or the connection is broken.

        `stop_calling` ends it; nothing may wait for the socket meanwhile. Raises OSError.
        """
        self._watch(self._loop.add_writer, callback)

    def stop_calling(self) -> None:
        """Call the function no more."""
        self._loop.remove_writer(self._sock.fileno())

    async def _wait(self, add: Callable[..., Any], remove: Callable[[int], bool]) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._watch(add, _wake, waiter)
        try:
            await waiter
        finally:
            remove(self._sock.fileno())
        # Many sockets may become ready in the same iteration of the loop.
        if self.turns is not None and not self.turns.is_time_left():
            await self.turns.wait()

    def _watch(self, add: Callable[..., Any], *callback: Any) -> None:
        try:
            add(self._sock.fileno(), *callback)
        except OSError as exc:
            # epoll_ctl(2): ENOMEM, or ENOSPC where the user has fs.epoll.max_user_watches. Neither is the peer's.
            raise OSError(errno.ENOMEM, exc.strerror) from exc


def _skip(pieces: list[memoryview], sent: int) -> list[memoryview]:
    rest = []
    for piece in pieces:
        if sent < len(piece):
            rest.append(piece[sent:])
        sent = max(0, sent - len(piece))
    return rest


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)

"""A pipe in the kernel that bytes pass through without entering this process (splice(2), Linux).

A pipe is used for one transfer and closed, also when it is empty: bytes left in one after a failure must never reach
another connection.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from types import TracebackType
from typing import Final, Self

from gateway.transfer.raw_socket import RawSocket

#: The most an unprivileged process may have (fs.pipe-max-size); the kernel grants less when a user has many.
_MAX_PIPE_BYTES: Final = 2**20
#: Below this, chunks through memory cost less. The kernel's own default.
_MIN_PIPE_BYTES: Final = 2**16


def can_splice() -> bool:
    """Return whether this system moves bytes from a socket to a pipe; not every Linux sandbox does."""
    if not hasattr(os, "splice"):
        return False
    ours, theirs = socket.socketpair()
    try:
        with ours, theirs, Pipe() as pipe:
            theirs.send(b"x")
            return os.splice(ours.fileno(), pipe.entry, 1) == 1
    except OSError:
        return False


def open_pipe() -> Pipe | None:
    """Return a pipe that is large enough, or None: no descriptors left, or the user's pipes hold too many pages."""
    try:
        pipe = Pipe()
    except OSError:
        return None
    if pipe.capacity >= _MIN_PIPE_BYTES:
        return pipe
    pipe.close()
    return None


class Pipe:
    """A pipe of up to 1 MiB, both ends non-blocking. A context manager."""

    def __init__(self) -> None:
        self._exit, self.entry = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.entry, fcntl.F_SETPIPE_SZ, _MAX_PIPE_BYTES)
        self.capacity = fcntl.fcntl(self.entry, fcntl.F_GETPIPE_SZ)
        self.held_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close both ends and drop what is in it."""
        os.close(self._exit)
        os.close(self.entry)

    async def fill_from(self, socket: RawSocket, most: int) -> int:
        """Move what a socket has received into the empty pipe; return how many bytes, 0 after the peer's end.

        Raises OSError. Cancelling leaves the pipe empty.
        """
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        while True:
            try:
                self.held_bytes = os.splice(socket.descriptor, self.entry, min(most, self.capacity), flags=flags)
            except BlockingIOError:
                await socket.wait_readable()
                continue
            return self.held_bytes

    async def empty_into(self, socket: RawSocket) -> None:
        """Move everything in the pipe to a socket. Raises OSError; cancelling leaves the rest in the pipe."""
        flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        while self.held_bytes:
            try:
                self.held_bytes -= os.splice(self._exit, socket.descriptor, self.held_bytes, flags=flags)
            except BlockingIOError:
                await socket.wait_writable()

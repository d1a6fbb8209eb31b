"""Standard output of several processes: each line is written whole, without another process's lines in it.

The system guarantees that only for 4 KiB (PIPE_BUF), and for a pipe with room. So a process writes while it has a lock:
a POSIX record lock (fcntl), which the system releases when its process ends. A write that did not take all, since the
disk is full or the pipe does not block, may have ended within a line: then the lock is kept until the rest is written.

A process may be killed while it writes:

    to a pipe        at most 4 KiB, or as much as there is room for, are written at once: all of it, or nothing. Only of
                     a line that is longer than both the beginning may be left.
    to another file  the beginning of a line may be left.

A byte in memory that all processes share says that a line may be left: it is set before each write of more than 4 KiB
to a pipe, and of anything to another file. The next process ends the line before it writes its own. If nothing was
left, that is an empty line.

Rejected: a pipe from each worker to the supervisor, which writes everything: that cost 3 to 9 us of CPU per line. A
lock on the file of standard output itself: other programs may have that locked. Writes of at most PIPE_BUF without a
lock: 6 lines each instead of 100, and after each the thread waits for the interpreter.
"""

from __future__ import annotations

import fcntl
import io
import mmap
import os
import select
import stat
import sys
import tempfile
import termios
from typing import Final, Protocol

_NEWLINE: Final = b"\n"
#: What a line may be that was written last.
_WHOLE, _CUT = 0, 1


class Output(Protocol):
    """What lines are written to."""

    def write(self, data: bytes, /) -> int | None:
        """Write; return how many bytes were written, None if there is no room now. Raises OSError."""
        ...

    def fileno(self) -> int:
        """Return the descriptor that is written to."""
        ...


def open_lock() -> int:
    """Return the descriptor of a lock; each process that shares an output gets a duplicate of it."""
    if sys.platform == "linux":
        lock = os.memfd_create("gateway-output")
    else:
        with tempfile.TemporaryFile() as file:
            lock = os.dup(file.fileno())
    os.ftruncate(lock, 1)
    return lock


class SharedOutput:
    """An output that other processes write to as well. Used by one thread.

    `lock` is a descriptor that stays open, the only one of this process: closing any would release the lock.
    """

    def __init__(self, stream: io.RawIOBase, lock: int) -> None:
        self._stream = stream
        self._lock = lock
        #: How the last write ended, of any process.
        self._end = mmap.mmap(lock, 1)
        #: This process has written the beginning of a line, and has the lock.
        self._is_within_line = False

    def write(self, data: bytes, /) -> int | None:
        """Write the first of these lines; `data` is lines, or after a write that ended in a line the rest of it first.

        Waits until no other process writes. Returns how many bytes were written, None if there is no room now. Raises
        OSError.
        """
        if not self._is_within_line:
            fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            return self._write_locked(data)
        finally:
            if not self._is_within_line:
                fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def fileno(self) -> int:
        """Return the descriptor that is written to."""
        return self._stream.fileno()

    def _write_locked(self, data: bytes) -> int | None:
        if not self._is_within_line and self._end[0] == _CUT and not self._stream.write(_NEWLINE):
            return None
        room = self._room()
        size = data.rfind(_NEWLINE, 0, room) + 1
        if not size or room is None or size > select.PIPE_BUF:
            # For the case that this process is killed meanwhile.
            self._end[0] = _CUT
        written = None
        try:
            written = self._stream.write(data[:size] if size else data[: data.find(_NEWLINE) + 1])
        finally:
            if written:
                self._is_within_line = data[written - 1 : written] != _NEWLINE
            self._end[0] = _CUT if self._is_within_line else _WHOLE
        return written

    def _room(self) -> int | None:
        """Return how many bytes are written as a whole or not at all; None if that is not known."""
        descriptor = self._stream.fileno()
        if sys.platform != "linux" or not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return None
        held = int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)
        # A pipe holds pages. What does not fit into the last one is put into a new one: two in a row hold at least a
        # page together, but for the first, of which a part was read.
        free = fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ) - 2 * held - 2 * mmap.PAGESIZE
        return max(select.PIPE_BUF, free)

"""Files on their way out: opened below their directory and nowhere else, read one block ahead."""

from __future__ import annotations

import asyncio
import os
import stat
from concurrent.futures import Future
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from gateway.errors import Fault, FaultKind
from gateway.storage.threads import DiskThreads

#: What asyncio reads from a socket at once, too: large enough for few steps, small enough for the cache.
_BLOCK_BYTES: Final = 256 * 1024
#: More than a socket takes at once: its buffer decides.
_SEND_BYTES: Final = 8 * 1024 * 1024
#: What is sent at once without a thread, if the kernel has it in memory: little enough to let others run between.
_CACHED_BYTES: Final = 4 * 1024 * 1024
_HAS_NOWAIT: Final = hasattr(os, "RWF_NOWAIT")
_PROBE: Final = bytearray(1)


class OutgoingFile:
    """An open regular file. `close` it; as a source it yields bytes `first` to `last` inclusive."""

    def __init__(self, disk_threads: DiskThreads, descriptor: int, status: os.stat_result) -> None:
        self._disk_threads = disk_threads
        self._descriptor = descriptor
        self.size = status.st_size
        self.modified_seconds = status.st_mtime
        #: Strong validator (RFC 9110 section 8.8.3): a write within the same nanosecond tick is not expected.
        self.etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"'.encode()
        self._at = 0
        self._end = self.size
        self._ahead: Future[bytes] | None = None
        #: Bytes sent by a call whose wait was cancelled.
        self.late_bytes = 0

    def select(self, first: int, last: int) -> None:
        """Choose the bytes to be read."""
        self._at, self._end = first, last + 1

    async def read(self) -> bytes:
        """Return the next block, b"" at the end. Raises Fault, also when the file has become shorter."""
        if self._at >= self._end:
            return b""
        self._ahead = self._ahead or self._start()
        block = await self._disk_threads.wait(self._ahead)
        if not block:
            self._ahead = None
            raise Fault(FaultKind.DISK_FAILED, "The file became shorter while it was sent.")
        self._at += len(block)
        self._ahead = self._start() if self._at < self._end else None
        return block

    async def send_to(self, descriptor: int) -> int:
        """Send what a non-blocking socket takes at once, in the kernel; return how many bytes, 0 if it is full.

        What the kernel has in memory is sent from here, anything else from a thread, which the disk may hold up.
        Raises Fault when the file has become shorter, OSError when the socket is broken.
        """
        size = min(_CACHED_BYTES, self._end - self._at)
        if self._is_cached(self._at, size):
            sent = self._send(descriptor, self._at, size)
        else:
            sent = await self._send_in_thread(descriptor)
        if sent is None:
            raise Fault(FaultKind.DISK_FAILED, "The file became shorter while it was sent.")
        self._at += sent
        return sent

    def _is_cached(self, at: int, size: int) -> bool:
        """Say whether the kernel has these bytes in memory, by their ends: then sending them waits for no disk."""
        if not _HAS_NOWAIT:
            return False
        try:
            for where in (at, at + size - 1):
                if not os.preadv(self._descriptor, (_PROBE,), where, os.RWF_NOWAIT):
                    return False
        except OSError:
            # Not there, or a file system that cannot tell.
            return False
        return True

    def _send(self, descriptor: int, at: int, size: int) -> int | None:
        try:
            return os.sendfile(descriptor, self._descriptor, at, size) or None
        except BlockingIOError:
            return 0

    async def _send_in_thread(self, descriptor: int) -> int | None:
        at, size = self._at, min(_SEND_BYTES, self._end - self._at)
        started = self._disk_threads.start(lambda: self._send(descriptor, at, size))
        try:
            return await self._disk_threads.finish(started)
        except asyncio.CancelledError:
            if not started.cancelled() and started.exception() is None:
                self.late_bytes = started.result() or 0
            raise

    async def close(self) -> None:
        """Close the file, behind a read still under way."""
        ahead, self._ahead = self._ahead, None

        def finish() -> None:
            if ahead is not None:
                ahead.exception()
            os.close(self._descriptor)

        self._disk_threads.start(finish)

    def _start(self) -> Future[bytes]:
        at, size = self._at, min(_BLOCK_BYTES, self._end - self._at)
        return self._disk_threads.start(lambda: os.pread(self._descriptor, size, at))


async def open_below(disk_threads: DiskThreads, directory: Path, path: str) -> OutgoingFile:
    """Open a file by the rest of a request's path (percent-encoded). Raises Fault FILE_NOT_FOUND or the disk's.

    Every way out of the directory is the same 404 as a missing file: `..`, absolute paths, symlinks, dot files.
    """
    descriptor, status = await disk_threads.run(lambda: _open(directory, path))
    return OutgoingFile(disk_threads, descriptor, status)


def _open(directory: Path, path: str) -> tuple[int, os.stat_result]:
    name = unquote_to_bytes(path)
    segments = name.split(b"/")
    if b"\0" in name or b"\\" in name or any(not segment or segment.startswith(b".") for segment in segments):
        raise _missing()
    try:
        # Not blocking: a FIFO without a writer would hold the thread.
        descriptor = os.open(
            os.path.join(os.fsencode(directory), name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        )
    except OSError as exc:
        directory.stat()  # raises for the directory itself: that is the operator's fault, and a 503
        raise _missing() from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not _is_below(descriptor, status, directory, name):
            raise _missing()
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status


def _is_below(descriptor: int, status: os.stat_result, directory: Path, name: bytes) -> bool:
    """Say whether what was opened lies in the directory, links resolved.

    Judged on the open descriptor, so that a link swapped between check and use changes nothing.
    """
    root = os.path.realpath(os.fsencode(directory))
    try:
        real = os.readlink(b"/proc/self/fd/%d" % descriptor)
    except OSError:
        # No /proc: resolve the path, and make sure it is the file that was opened.
        real = os.path.realpath(os.path.join(root, name))
        if not os.path.samestat(os.stat(real), status):
            return False
    return real.startswith(root.rstrip(b"/") + b"/")


def _missing() -> Fault:
    return Fault(FaultKind.FILE_NOT_FOUND, "There is no such file: check the path behind the route's prefix.")

"""One file of a local directory: written by threads and hashed on the way, or read one chunk ahead."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
from concurrent.futures import Future
from pathlib import Path
from typing import Final, Self

from gateway.errors import Fault, FaultKind
from gateway.storage.batches import Batches
from gateway.storage.names import file_missing, path_segments
from gateway.storage.threads import DiskThreads

#: Hashed, then written while still in the processor's cache: a third less CPU than with steps of 1 MiB.
_STEP_BYTES: Final = 128 * 1024
#: Written bytes after which the kernel is asked to write them out.
_FLUSH_BYTES: Final = 8 * 1024 * 1024
#: As much as asyncio reads from a socket at once: large enough for few steps, small enough for the cache.
_CHUNK_BYTES: Final = 256 * 1024
#: Largest sendfile call in a thread. A socket buffer is smaller, so the socket decides.
_SEND_BYTES: Final = 8 * 1024 * 1024
#: Largest sendfile call on the event loop, for bytes the kernel has in memory: short enough for the other connections.
_CACHED_BYTES: Final = 4 * 1024 * 1024
_HAS_NOWAIT: Final = hasattr(os, "RWF_NOWAIT")
_PROBE: Final = bytearray(1)


class FileWriter:
    """A file of an upload in its staging directory: the IncomingFile of a DirectoryUpload."""

    def __init__(self, disk_threads: DiskThreads, path: Path, name: str) -> None:
        self.path = path
        #: The name it shall get; the commit may number it.
        self.name = name
        #: Its path after the commit.
        self.final: Path | None = None
        self.size = 0
        self._file = _HashedFile(path)
        self._batches = Batches(disk_threads, self._file.write)

    async def create(self) -> None:
        """Create the file. Raises Fault."""
        await self._batches.run(self._file.create)

    async def write(self, data: bytes) -> None:
        """Write a chunk; returns when at most one batch before it is still being written. Raises Fault."""
        self.size += len(data)
        await self._batches.add(data)

    async def finish(self) -> None:
        """Write what is left, sync and close the file. Raises Fault."""
        await self._batches.run(self._file.sync)

    @property
    def sha256(self) -> str:
        """Digest of what was written, in hex."""
        return self._file.hash.hexdigest()

    def remove(self) -> None:
        """Close and remove the file; blocks until its thread, which uses the descriptor, is done. Raises OSError."""
        self._batches.join()
        self._file.close()
        self.path.unlink(missing_ok=True)


class _HashedFile:
    """What the threads do for a FileWriter. Every method may block and raises OSError."""

    def __init__(self, path: Path) -> None:
        self.hash = hashlib.sha256()
        self._path = path
        self._descriptor = -1
        self._written = self._flushed = 0

    def create(self) -> None:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def write(self, batch: list[bytes]) -> None:
        for data in batch:
            view = memoryview(data)
            while view:
                step = view[:_STEP_BYTES]
                self.hash.update(step)
                while step:
                    count = os.write(self._descriptor, step)
                    step, view = step[count:], view[count:]
            self._written += len(data)
        if self._written - self._flushed >= _FLUSH_BYTES and hasattr(os, "posix_fadvise"):
            # Linux starts to write dirty pages out and keeps them: the sync at the end finds little to do.
            length = self._written - self._flushed
            os.posix_fadvise(self._descriptor, self._flushed, length, os.POSIX_FADV_DONTNEED)
            self._flushed = self._written

    def sync(self) -> None:
        os.fsync(self._descriptor)
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class FileReader:
    """A regular file, open for reading: the StoredFileReader of a DirectoryStorage."""

    def __init__(self, disk_threads: DiskThreads, descriptor: int, status: os.stat_result) -> None:
        self._disk_threads = disk_threads
        self._descriptor = descriptor
        self.size = status.st_size
        self.modified_seconds = status.st_mtime
        #: Strong validator (RFC 9110 section 8.8.3): two writes within one nanosecond tick are not expected.
        self.etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"'.encode()
        self.late_bytes = 0
        self._at = 0
        self._end = self.size
        self._ahead: Future[bytes] | None = None

    @property
    def sendfile_source(self) -> Self:
        """This file: the kernel can send it."""
        return self

    def select(self, first: int, last: int) -> None:
        """Select the bytes from `first` to `last`, both included."""
        self._at, self._end = first, last + 1

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end. Raises Fault, also where the file became shorter."""
        if self._at >= self._end:
            return b""
        self._ahead = self._ahead or self._read_ahead()
        chunk = await self._disk_threads.wait(self._ahead)
        if not chunk:
            self._ahead = None
            raise _became_shorter()
        self._at += len(chunk)
        self._ahead = self._read_ahead() if self._at < self._end else None
        return chunk

    async def send_to(self, descriptor: int) -> int:
        """Send what a non-blocking socket takes, with sendfile; return the byte count, 0 if the socket is full.

        Bytes the kernel has in memory are sent from the event loop, all others from a thread, because the disk may
        block. Raises Fault where the file became shorter, OSError where the socket is broken.
        """
        size = min(_CACHED_BYTES, self._end - self._at)
        if self._is_cached(self._at, size):
            sent = self._send(descriptor, self._at, size)
        else:
            sent = await self._send_in_thread(descriptor)
        if sent is None:
            raise _became_shorter()
        self._at += sent
        return sent

    async def close(self) -> None:
        """Close the file after a read that is still running. Does not wait for it."""
        ahead, self._ahead = self._ahead, None

        def finish() -> None:
            if ahead is not None:
                ahead.exception()
            os.close(self._descriptor)

        self._disk_threads.start(finish)

    def _read_ahead(self) -> Future[bytes]:
        at, size = self._at, min(_CHUNK_BYTES, self._end - self._at)
        return self._disk_threads.start(lambda: os.pread(self._descriptor, size, at))

    def _is_cached(self, at: int, size: int) -> bool:
        """Return whether the first and last of these bytes are in the page cache: then sendfile waits for no disk."""
        if not _HAS_NOWAIT:
            return False
        try:
            for where in (at, at + size - 1):
                if not os.preadv(self._descriptor, (_PROBE,), where, os.RWF_NOWAIT):
                    return False
        except OSError:
            # Not in memory, or a file system without RWF_NOWAIT.
            return False
        return True

    def _send(self, descriptor: int, at: int, size: int) -> int | None:
        """Return how many bytes the socket took, None at the end of the file."""
        try:
            return os.sendfile(descriptor, self._descriptor, at, size) or None
        except BlockingIOError:
            return 0

    async def _send_in_thread(self, descriptor: int) -> int | None:
        at, size = self._at, min(_SEND_BYTES, self._end - self._at)
        started = self._disk_threads.start(lambda: self._send(descriptor, at, size))
        try:
            return await self._disk_threads.wait_to_end(started)
        except asyncio.CancelledError:
            if not started.cancelled() and started.exception() is None:
                self.late_bytes = started.result() or 0
            raise


def open_for_reading(directory: Path, path: str) -> tuple[int, os.stat_result]:
    """Open a regular file by its percent-encoded path below a directory. Blocks. Raises Fault FILE_NOT_FOUND, OSError.

    Everything that leads out of the directory is the same 404 as a missing file: `..`, absolute paths, symlinks. So
    are dot files.
    """
    segments = path_segments(path)
    if any(b"\\" in segment or segment.startswith(b".") for segment in segments):
        raise file_missing()
    name = b"/".join(segments)
    try:
        # Not blocking: a FIFO without a writer would hold the thread.
        descriptor = os.open(
            os.path.join(os.fsencode(directory), name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        )
    except OSError as exc:
        directory.stat()  # raises where the directory itself is missing: a 503, which the operator has to mend
        raise file_missing() from exc
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not _is_below(descriptor, status, directory, name):
            raise file_missing()
        stack.pop_all()
    return descriptor, status


def _is_below(descriptor: int, status: os.stat_result, directory: Path, name: bytes) -> bool:
    """Return whether the opened file is in the directory, with symlinks resolved.

    Checked on the open descriptor: a symlink that is swapped between check and use changes nothing.
    """
    root = os.path.realpath(os.fsencode(directory))
    try:
        real = os.readlink(b"/proc/self/fd/%d" % descriptor)
    except OSError:
        # No /proc: resolve the path, and check that it is the file that was opened.
        real = os.path.realpath(os.path.join(root, name))
        if not os.path.samestat(os.stat(real), status):
            return False
    return real.startswith(root.rstrip(b"/") + b"/")


def _became_shorter() -> Fault:
    return Fault(FaultKind.DISK_FAILED, "The file became shorter while it was sent.")

"""One file of a local directory: written by one thread while another hashes it, or read one chunk ahead."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from gateway.errors import Fault, FaultKind
from gateway.storage.batches import Batches, BatchSizes, BatchWork
from gateway.storage.cached_pieces import CachedPieces
from gateway.storage.hashing import FileHash
from gateway.storage.names import file_missing, path_segments
from gateway.storage.page_cache import PageCache
from gateway.storage.threads import DiskThreads, disk_fault
from gateway.transfer import exhaustion_fault

#: Written bytes after which the kernel is asked to write them out.
_FLUSH_BYTES: Final = 8 * 1024 * 1024
#: As much as asyncio reads from a socket at once: large enough for few steps, small enough for the cache.
_CHUNK_BYTES: Final = 256 * 1024
#: A sendfile call takes as many bytes as it moves in about this time of the processor: the other connections wait for
#: it. Passed time would count other processes, too. No more than a socket holds (tcp_wmem): larger calls fill it, and
#: then wait for its client, which costs more than the calls they save.
_SEND_SECONDS: Final = 0.0025
_MAX_SEND_BYTES: Final = 4 * 1024 * 1024
#: What the kernel reads meanwhile when a thread reads from the disk.
_FOLLOWING_BYTES: Final = 4 * 1024 * 1024
#: Fewer bytes than this in memory are not worth a sendfile call: the rest needs a thread anyway.
_MIN_SEND_BYTES: Final = 128 * 1024
#: Bytes looked up in memory at once: the first time, and at most (0.2 ms).
_FIRST_LOOK_BYTES: Final = 4 * 1024 * 1024
_MAX_LOOK_BYTES: Final = 16 * 1024 * 1024
#: How long the answer holds that bytes are in memory, twice this for the last ones of it: within it the kernel drops
#: none that were just looked at, short of a shortage in which everything waits. Asking again for each call would cost
#: a third more.
_FRESH_SECONDS: Final = 0.025
#: Of sendfile, where the file cannot be read; others are of the socket.
_OF_FILE: Final = frozenset({errno.EIO, errno.ESTALE})


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A regular file, opened for reading."""

    descriptor: int
    status: os.stat_result
    page_cache: PageCache

    def close(self) -> None:
        """Close it. Blocks."""
        self.page_cache.close()
        os.close(self.descriptor)


class FileWriter:
    """A file of an upload in its staging directory: the IncomingFile of a DirectoryUpload.

    Both threads work on the same chunks, so that no more are held than for one.
    """

    def __init__(self, disk_threads: DiskThreads, name: str, hashed: FileHash | None, sizes: BatchSizes) -> None:
        #: The name it shall get; the commit may number it.
        self.name = name
        self.size = 0
        self._file = _WrittenFile()
        self._hash = hashed
        writing = BatchWork(disk_threads, self._file.write)
        self._batches = Batches([writing] if hashed is None else [writing, hashed.work], sizes)

    async def create(self, make_path: Callable[[], Path]) -> None:
        """Create the file; a thread calls `make_path`. Raises Fault."""
        await self._batches.run(lambda: self._file.create(make_path()))

    async def write(self, data: bytes) -> None:
        """Write a chunk; returns when at most two batches before it are being written and hashed. Raises Fault."""
        self.size += len(data)
        await self._batches.add(data)

    async def finish(self) -> None:
        """Write what is left, sync and close the file. Raises Fault."""
        await self._batches.sync(self._file.sync)

    @property
    def path(self) -> Path:
        """Its path until the commit; valid after `create`."""
        return self._file.path

    @property
    def sha256(self) -> str | None:
        """Digest of what was written, in hex; None if it was not hashed."""
        return self._hash.hexdigest() if self._hash is not None else None

    def stop(self) -> list[Future[None]]:
        """Start nothing that has not begun; return the calls that use the file, or did."""
        return self._batches.stop()

    def remove(self) -> None:
        """Close and remove the file, in a thread, when no call uses it any more. Raises OSError."""
        self._file.remove()


class _WrittenFile:
    """What the threads do for a FileWriter. Every method may block and raises OSError."""

    def __init__(self) -> None:
        self.path = Path()
        self._descriptor = -1
        self._written = self._flushed = 0

    def create(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self.path = path

    def write(self, batch: list[bytes]) -> None:
        for data in batch:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
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

    def remove(self) -> None:
        self.close()
        if self.path.name:
            self.path.unlink(missing_ok=True)


class FileReader:
    """A regular file, open for reading: the StoredFileReader of a DirectoryStorage."""

    def __init__(
        self,
        disk_threads: DiskThreads,
        file: OpenedFile,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._disk_threads = disk_threads
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._file = file
        self._descriptor = file.descriptor
        self._page_cache = file.page_cache
        status = file.status
        self.size = status.st_size
        self.modified_seconds = status.st_mtime
        #: Strong validator (RFC 9110 section 8.8.3): two writes within one nanosecond tick are not expected.
        self.etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"'.encode()
        self._at = 0
        self._end = self.size
        self._ahead: Future[bytes] | None = None
        #: Read by a thread, and not yet taken by the socket.
        self._unsent = memoryview(b"")
        #: The bytes up to here were in memory when they were looked at.
        self._cached_end = 0
        self._cached_at = 0.0
        #: Whether the bytes after these are not known to be cold.
        self._may_look_on = False
        self._look_bytes = _FIRST_LOOK_BYTES // 2
        self._max_send_bytes = _MAX_SEND_BYTES
        self._sent_bytes = 0
        #: Whether the socket took less than there was to send: it is full.
        self.has_filled_socket = False

    @property
    def sendfile_source(self) -> Self | None:
        """This file, if the kernel can send it: only where it can say what is in memory."""
        return self if self._page_cache.can_tell else None

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

    def send_ready(self, descriptor: int) -> int | None:
        """Send what a non-blocking socket takes of what needs no disk; return the byte count, 0 if the socket is full.

        None where the next bytes are not in memory: `read_cold` has to read them, because the disk may block. Bytes
        that are in memory are sent by sendfile, only those that were found there shortly before. Raises Fault where
        the file became shorter, OSError where the socket is broken.
        """
        if not self._unsent:
            cached = self._count_cached()
            return self._send_cached(descriptor, cached) if cached else None
        try:
            sent = os.write(descriptor, self._unsent)
        except BlockingIOError:
            sent = 0
        self._unsent = self._unsent[sent:]
        self.has_filled_socket = bool(self._unsent)
        return sent

    async def read_cold(self) -> None:
        """Have a thread read the next chunk from the disk, and the kernel what follows meanwhile. Raises Fault."""
        at, size = self._at, min(_CHUNK_BYTES, self._end - self._at)
        # Kept: the cleanup waits for it.
        self._ahead = self._disk_threads.start(lambda: _read_with_following(self._descriptor, at, size))
        chunk = await self._disk_threads.wait(self._ahead)
        self._ahead = None
        if not chunk:
            raise _became_shorter()
        self._at += len(chunk)
        self._unsent = memoryview(chunk)

    async def close(self) -> None:
        """Close the file after a read that is still running. Does not wait for it."""
        ahead, self._ahead = self._ahead, None
        self._disk_threads.clean_up(self._file.close, [ahead] if ahead is not None else [])

    def _read_ahead(self) -> Future[bytes]:
        at, size = self._at, min(_CHUNK_BYTES, self._end - self._at)
        return self._disk_threads.start(lambda: os.pread(self._descriptor, size, at))

    def _send_cached(self, descriptor: int, size: int) -> int:
        began = self._cpu_clock()
        try:
            sent = os.sendfile(descriptor, self._descriptor, self._at, size)
        except BlockingIOError:
            self.has_filled_socket = True
            return 0
        except OSError as exc:
            if exc.errno in _OF_FILE:
                raise disk_fault(exc) from exc
            raise
        if not sent:
            raise _became_shorter()
        seconds = self._cpu_clock() - began
        if seconds > _SEND_SECONDS:
            self._max_send_bytes = max(self._max_send_bytes // 2, _MIN_SEND_BYTES)
        elif sent == self._max_send_bytes and seconds < _SEND_SECONDS / 2:
            self._max_send_bytes = min(self._max_send_bytes * 2, _MAX_SEND_BYTES)
        self.has_filled_socket = sent < size
        self._sent_bytes = sent
        self._at += sent
        return sent

    def _count_cached(self) -> int:
        """Return how many of the next bytes are in memory, 0 if so few that a thread may as well read them."""
        now, known = self._clock(), self._cached_end - self._at
        if known <= 0:
            self._look(self._at, min(2 * self._look_bytes, _MAX_LOOK_BYTES), now)
        elif now - self._cached_at >= _FRESH_SECONDS:
            # The client is slow: it takes about as much as the last time, and looking at more would be in vain.
            self._look(self._at, min(max(2 * self._sent_bytes, _MIN_SEND_BYTES), _MAX_LOOK_BYTES), now)
        elif self._may_look_on and known < max(min(2 * self._sent_bytes, self._max_send_bytes), _MIN_SEND_BYTES):
            # A call for what is left of the last look would be a small one.
            self._look(self._cached_end, min(2 * self._look_bytes, _MAX_LOOK_BYTES), now)
        known = min(self._cached_end - self._at, self._max_send_bytes)
        return known if known >= _MIN_SEND_BYTES or self._cached_end == self._end else 0

    def _look(self, at: int, size: int, now: float) -> None:
        """Look at the bytes from `at`: in memory are those before it, and those that are found."""
        size = min(size, self._end - at)
        cached = self._page_cache.count_cached(at, size)
        self._look_bytes = size
        self._cached_end, self._cached_at = at + cached, now
        self._may_look_on = cached == size and self._cached_end < self._end


def _read_with_following(descriptor: int, at: int, size: int) -> bytes:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, at, _FOLLOWING_BYTES, os.POSIX_FADV_WILLNEED)
    return os.pread(descriptor, size, at)


def open_for_reading(directory: Path, path: str, pieces: CachedPieces | None = None) -> OpenedFile:
    """Open a regular file by its percent-encoded path below a directory. Blocks. Raises Fault FILE_NOT_FOUND, OSError.

    Everything that leads out of the directory is the same 404 as a missing file: `..`, absolute paths, symlinks. So
    are dot files. What is found in memory of the file is remembered in `pieces`.
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
        if exhaustion_fault(exc) is not None:
            raise
        directory.stat()  # raises where the directory itself is missing: a 503, which the operator has to mend
        raise file_missing() from exc
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not _is_below(descriptor, status, directory, name):
            raise file_missing()
        size = status.st_size if status.st_size >= _MIN_SEND_BYTES else 0
        page_cache = PageCache(descriptor, status.st_uid, size, pieces.of(status) if pieces is not None else None)
        stack.pop_all()
    return OpenedFile(descriptor, status, page_cache)


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

"""Files on their way in: written into a hidden directory, synced, renamed out of it. Whole or not at all.

All files of one upload appear together at its end: the client repeats a failed upload as a whole, and must not find
half of it there already. Writing is one step behind receiving: while a batch is written and hashed in a thread, the
next is received; more is never held.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from gateway.errors import Fault, FaultKind
from gateway.storage.names import numbered, random_name, safe_name
from gateway.storage.staging import Staging
from gateway.storage.threads import DiskThreads

#: Bytes gathered before a thread is bothered; at most two such batches are held.
_BATCH_BYTES: Final = 512 * 1024
#: Hashed, then written while still in the processor's cache: a third less CPU than chunks of 1 MiB at a time.
_STEP_BYTES: Final = 128 * 1024
#: Bytes after which the kernel is asked to begin writing out.
_FLUSH_BYTES: Final = 8 * 1024 * 1024
_MAX_NUMBER: Final = 9999
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})

IfExists = Literal["rename", "reject", "replace"]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is there to stay."""

    name: str
    size: int
    sha256: str


class IncomingFile:
    """One file being written. Made by Upload.begin."""

    def __init__(self, disk_threads: DiskThreads, path: Path, name: str) -> None:
        self._disk_threads = disk_threads
        self.path = path
        self.name = name
        self.size = 0
        self.final: Path | None = None
        self._hash = hashlib.sha256()
        self._descriptor = -1
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._written = self._flushed = 0
        self._writing: Future[None] | None = None

    async def open(self) -> None:
        """Create the file. Raises Fault."""
        self._writing = self._disk_threads.start(self._create)
        await self._wait()

    async def write(self, data: bytes) -> None:
        """Take data; returns when at most one batch before it is still being written. Raises Fault."""
        self._batch.append(data)
        self._batch_bytes += len(data)
        self.size += len(data)
        if self._batch_bytes >= _BATCH_BYTES:
            await self._hand_over()

    async def finish(self) -> None:
        """Write what is left and sync it. Raises Fault."""
        await self._hand_over()
        await self._wait()
        self._writing = self._disk_threads.start(self._sync)
        await self._wait()

    @property
    def sha256(self) -> str:
        """Digest of what was written, in hex."""
        return self._hash.hexdigest()

    def abandon(self) -> None:
        """Close and remove, in a thread: waits for a write under way, which uses the descriptor."""
        if self._writing is not None:
            with contextlib.suppress(OSError):
                self._writing.result()
        self._close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    async def _hand_over(self) -> None:
        await self._wait()
        if self._batch:
            batch, self._batch, self._batch_bytes = self._batch, [], 0
            self._writing = self._disk_threads.start(lambda: self._write(batch))

    async def _wait(self) -> None:
        if self._writing is not None:
            await self._disk_threads.wait(self._writing)
            self._writing = None

    def _create(self) -> None:
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def _write(self, batch: list[bytes]) -> None:
        for data in batch:
            view = memoryview(data)
            while view:
                step = view[:_STEP_BYTES]
                self._hash.update(step)
                while step:
                    count = os.write(self._descriptor, step)
                    step, view = step[count:], view[count:]
            self._written += len(data)
        if self._written - self._flushed >= _FLUSH_BYTES and hasattr(os, "posix_fadvise"):
            # On Linux this begins to write dirty pages out and keeps them: the sync at the end finds little to do.
            length = self._written - self._flushed
            os.posix_fadvise(self._descriptor, self._flushed, length, os.POSIX_FADV_DONTNEED)
            self._flushed = self._written

    def _sync(self) -> None:
        os.fsync(self._descriptor)
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class Upload:
    """The files of one upload. An async context manager: left without `commit`, nothing of it stays."""

    def __init__(self, disk_threads: DiskThreads, directory: Path, *, naming: str, if_exists: IfExists) -> None:
        self._disk_threads = disk_threads
        self._directory = directory
        self._naming = naming
        self._if_exists = if_exists
        self._files: list[IncomingFile] = []
        self._staging: Future[Staging] | None = None
        self._committing: Future[list[StoredFile]] | None = None
        self._is_committed = False

    async def __aenter__(self) -> Self:
        """Nothing is made before the first file."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove what was not committed. A second cancellation does not stop it, only the wait for it."""
        if not self._is_committed and self._staging is not None:
            # The client is to hear of what broke the upload; what cannot be removed now is swept at the next start.
            with contextlib.suppress(OSError):
                await asyncio.shield(asyncio.wrap_future(self._disk_threads.start(self._abandon)))

    async def check_room(self, size: int | None) -> None:
        """Refuse an upload there is no room for, or no directory. Raises Fault before a byte is asked for."""
        await self._disk_threads.run(lambda: self._check_room(size or 0))

    async def begin(self, filename: str) -> IncomingFile:
        """Return a new file to write into. Raises Fault, FILE_EXISTS where the name is taken and must not be."""
        name = random_name(filename) if self._naming == "uuid" else safe_name(filename)
        if self._if_exists == "reject" and await self._disk_threads.run((self._directory / name).exists):
            raise _exists(name)
        if self._staging is None:
            self._staging = self._disk_threads.start(lambda: Staging.make(self._directory))
        staging = await self._disk_threads.wait(self._staging)
        file = IncomingFile(self._disk_threads, staging.path / str(len(self._files)), name)
        self._files.append(file)
        await file.open()
        return file

    async def commit(self) -> list[StoredFile]:
        """Give every file its name, at once as far as file systems allow. Raises Fault; then none has it."""
        self._committing = self._disk_threads.start(self._commit)
        stored = await self._disk_threads.wait(self._committing)
        self._is_committed = True
        return stored

    def _check_room(self, size: int) -> None:
        room = os.statvfs(self._directory)
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if size > room.f_bavail * room.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _commit(self) -> list[StoredFile]:
        try:
            for file in self._files:
                self._name(file)
            self._sync_directory()
        except BaseException:
            for file in self._files:
                # A file that replaced another cannot be undone; one that took a free name can.
                if file.final is not None and self._if_exists != "replace":
                    file.final.unlink(missing_ok=True)
            raise
        self._unstage()
        return [StoredFile(file.name, file.size, file.sha256) for file in self._files]

    def _name(self, file: IncomingFile) -> None:
        if self._if_exists == "replace":
            file.path.replace(self._directory / file.name)
            file.final = self._directory / file.name
            return
        wanted = file.name
        for number in range(_MAX_NUMBER + 1):
            file.name = numbered(wanted, number) if number else wanted
            if _take_name(file.path, self._directory / file.name):
                file.final = self._directory / file.name
                return
            if self._if_exists == "reject":
                raise _exists(file.name)
        raise _exists(wanted)

    def _sync_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _abandon(self) -> None:
        if self._committing is not None and self._committing.exception() is None:
            # Cancelled while the commit ran, which then succeeded: the files are whole and have their names.
            return
        with contextlib.ExitStack() as stack:
            # Each, whatever becomes of the others.
            stack.callback(self._unstage)
            for file in self._files:
                stack.callback(file.abandon)

    def _unstage(self) -> None:
        if self._staging is not None and self._staging.exception() is None:
            self._staging.result().remove()


def _take_name(path: Path, final: Path) -> bool:
    """Rename without ever replacing; say whether the name was free."""
    try:
        final.hardlink_to(path)
    except FileExistsError:
        return False
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        # A file system without hard links: hold the name with an empty file for the length of a rename.
        try:
            os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        except FileExistsError:
            return False
        path.replace(final)
        return True
    path.unlink()
    return True


def _exists(name: str) -> Fault:
    return Fault(FaultKind.FILE_EXISTS, f"A file named {name!r} exists: choose another name, or set store.if_exists.")

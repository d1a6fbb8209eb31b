"""A local directory as a storage.

Files are written into a hidden staging directory, synced, and renamed out of it together by the commit. At most one
batch is being written while the next one is received.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from gateway.errors import Fault
from gateway.observe.stats import Leg
from gateway.storage.file import FileReader, FileWriter, open_for_reading
from gateway.storage.interface import StoredFile
from gateway.storage.names import NameRules, name_taken
from gateway.storage.staging import Staging
from gateway.storage.threads import DiskThreads

_MAX_NUMBER: Final = 9999
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class DirectoryStorage:
    """A local directory, which must exist. Holds nothing open, so there is nothing to close."""

    write_leg: Final = Leg.DISK_WRITE
    read_leg: Final = Leg.DISK_READ

    def __init__(self, directory: Path, disk_threads: DiskThreads) -> None:
        self._directory = directory
        self._disk_threads = disk_threads

    def open_upload(self, rules: NameRules) -> DirectoryUpload:
        """Return a new upload; enter it before use."""
        return DirectoryUpload(self._disk_threads, self._directory, rules)

    async def open_file(self, path: str) -> FileReader:
        """Open a file by its percent-encoded path. Raises Fault; see `open_for_reading` for what is FILE_NOT_FOUND."""
        opening = self._disk_threads.start(lambda: open_for_reading(self._directory, path))
        try:
            descriptor, status = await self._disk_threads.wait(opening)
        except asyncio.CancelledError:
            # The thread goes on: what it opens has no reader any more.
            opening.add_done_callback(_close_opened)
            raise
        return FileReader(self._disk_threads, descriptor, status)


class DirectoryUpload:
    """The files of one upload to a directory."""

    def __init__(self, disk_threads: DiskThreads, directory: Path, rules: NameRules) -> None:
        self._disk_threads = disk_threads
        self._directory = directory
        self._rules = rules
        self._files: list[FileWriter] = []
        self._staging: Future[Staging] | None = None
        self._committing: Future[list[StoredFile]] | None = None
        self._is_committed = False

    async def __aenter__(self) -> Self:
        """Return itself; nothing is created before the first file."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove what was not committed. A second cancellation ends the wait for the removal, not the removal."""
        if not self._is_committed and self._staging is not None:
            # The client gets the fault that ended the upload, not this one. `sweep` removes the rest at the next start.
            with contextlib.suppress(Fault):
                await self._disk_threads.run(self._remove)

    async def check_room(self, size: int | None) -> None:
        """Check that the directory is writable and its file system has `size` bytes free. Raises Fault."""
        await self._disk_threads.run(lambda: self._check_room(size or 0))

    async def begin(self, filename: str) -> FileWriter:
        """Return a new file to write. Raises Fault, FILE_EXISTS where the name is taken and must not be."""
        name = self._rules.choose(filename)
        if self._rules.if_exists == "reject" and await self._disk_threads.run((self._directory / name).exists):
            raise name_taken(name)
        if self._staging is None:
            self._staging = self._disk_threads.start(lambda: Staging.make(self._directory))
        staging = await self._disk_threads.wait(self._staging)
        file = FileWriter(self._disk_threads, staging.path / str(len(self._files)), name)
        self._files.append(file)
        await file.create()
        return file

    async def commit(self) -> list[StoredFile]:
        """Rename every file to its name, one directly after the other. Raises Fault; then no free name is taken."""
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
            # Whatever broke the commit, a bug included: no file of it stays.
            for file in self._files:
                # A file that has replaced another stays: the other is lost. One that has taken a free name is removed.
                if file.final is not None and self._rules.if_exists != "replace":
                    file.final.unlink(missing_ok=True)
            raise
        self._remove_staging()
        return [StoredFile(file.name, file.size, file.sha256) for file in self._files]

    def _name(self, file: FileWriter) -> None:
        if self._rules.if_exists == "replace":
            final = self._directory / file.name
            file.path.replace(final)
            file.final = final
            return
        for name in self._rules.candidates(file.name, _MAX_NUMBER):
            final = self._directory / name
            if _take_name(file.path, final):
                file.name, file.final = name, final
                return
        raise name_taken(file.name)

    def _sync_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _remove(self) -> None:
        if self._committing is not None and self._committing.exception() is None:
            # Cancelled during a commit that then succeeded: the files are complete and have their names.
            return
        with contextlib.ExitStack() as stack:
            # Every file, also where removing one of them fails.
            stack.callback(self._remove_staging)
            for file in self._files:
                stack.callback(file.remove)

    def _remove_staging(self) -> None:
        if self._staging is not None and self._staging.exception() is None:
            self._staging.result().remove()


def _take_name(path: Path, final: Path) -> bool:
    """Rename without replacing a file; return whether the name was free."""
    try:
        final.hardlink_to(path)
    except FileExistsError:
        return False
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        # A file system without hard links: an empty file holds the name until the rename.
        try:
            os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        except FileExistsError:
            return False
        path.replace(final)
        return True
    path.unlink()
    return True


def _close_opened(opening: Future[tuple[int, os.stat_result]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result()[0])

"""A local directory as a storage.

Files are written into a hidden staging directory, synced, and renamed out of it together by the commit. A large file
that was replaced is removed after the response: to free its pages takes a fifth of a second per GB.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from gateway.errors import Fault, FaultKind
from gateway.observe.stats import Leg
from gateway.storage.batches import BatchSizes
from gateway.storage.cached_pieces import CachedPieces
from gateway.storage.file import FileReader, FileWriter, OpenedFile, open_for_reading
from gateway.storage.hashing import FileHash
from gateway.storage.interface import StoredFile
from gateway.storage.names import NameRules, name_blocked, name_refused, name_repeated, name_taken
from gateway.storage.staging import Staging
from gateway.storage.threads import DiskThreads

_MAX_NUMBER: Final = 9999
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
#: How long an upload that is cancelled waits for its removal: the client is to be cut within 200 ms.
_CANCELLED_SECONDS: Final = 0.1
#: Replaced files of one upload that are removed before the response, if they have no more bytes than this together.
_REMOVED_BYTES: Final = 4 * 2**20
#: What a file system says of a name it cannot store.
_BAD_NAME: Final = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})


class DirectoryStorage:
    """A local directory, which must exist."""

    write_leg: Final = Leg.DISK_WRITE
    read_leg: Final = Leg.DISK_READ

    def __init__(self, directory: Path, disk_threads: DiskThreads, hash_threads: DiskThreads) -> None:
        self._directory = directory
        self._disk_threads = disk_threads
        #: A disk that does not answer must not keep them.
        self._hash_threads = hash_threads
        self._cached_pieces = CachedPieces()
        self._sizes = BatchSizes()

    async def close(self) -> None:
        """Wait for nothing: what a disk that does not respond has left is removed at the next start."""

    def open_upload(self, rules: NameRules) -> DirectoryUpload:
        """Return a new upload; enter it before use."""
        return DirectoryUpload(self._disk_threads, self._hash_threads, self._directory, rules, self._sizes)

    async def open_file(self, path: str) -> FileReader:
        """Open a file by its percent-encoded path. Raises Fault; see `open_for_reading` for what is FILE_NOT_FOUND."""
        opening = self._disk_threads.start(lambda: open_for_reading(self._directory, path, self._cached_pieces))
        try:
            file = await self._disk_threads.wait(opening)
        except BaseException:
            # Cancelled, or it took too long. The thread goes on: what it opens has no reader any more.
            opening.add_done_callback(_close_opened)
            raise
        return FileReader(self._disk_threads, file)


class DirectoryUpload:
    """The files of one upload to a directory."""

    def __init__(
        self,
        disk_threads: DiskThreads,
        hash_threads: DiskThreads,
        directory: Path,
        rules: NameRules,
        sizes: BatchSizes,
    ) -> None:
        self._disk_threads = disk_threads
        self._hash_threads = hash_threads
        self._directory = directory
        self._rules = rules
        self._sizes = sizes
        self._files: list[FileWriter] = []
        self._staging: Staging | None = None
        self._committing: Future[None] | None = None
        #: Files that were replaced and are still to be removed.
        self._replaced: list[Path] = []
        self._is_committed = False

    async def __aenter__(self) -> Self:
        """Return itself; nothing is created before the first file."""
        self._sizes.open_count += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove what was not committed; the removal begins when the calls under way have ended.

        An upload that is cancelled waits 0.1 s for it, one whose disk is slow not at all, any other until it is done.
        """
        self._sizes.open_count -= 1
        if self._is_committed or not self._files:
            return
        running: list[Future[Any]] = [call for file in self._files for call in file.stop()]
        if self._committing is not None:
            running.append(self._committing)
        removal = self._disk_threads.clean_up(self._remove, running)
        if isinstance(exc, Fault) and exc.kind is FaultKind.DISK_SLOW:
            # The removal begins when the disk answers again; `sweep` removes the rest at the next start.
            return
        # The client gets the fault that ended the upload, not this one.
        limit_seconds = _CANCELLED_SECONDS if isinstance(exc, asyncio.CancelledError) else None
        with contextlib.suppress(Fault):
            await self._disk_threads.wait(removal, limit_seconds)

    async def check_room(self, size: int | None) -> None:
        """Check that the directory is writable and its file system has `size` bytes free. Raises Fault."""
        await self._disk_threads.run(lambda: self._check_room(size or 0))

    async def begin(self, filename: str, *, is_hashed: bool = True) -> FileWriter:
        """Return a new file to write. Raises Fault, FILE_EXISTS where the name is taken and must not be."""
        name, number = self._rules.choose(filename), len(self._files)
        if self._rules.if_exists == "replace" and any(name == file.name for file in self._files):
            raise name_repeated(name)
        hashed = FileHash(self._hash_threads) if is_hashed else None
        file = FileWriter(self._disk_threads, name, hashed, self._sizes)
        self._files.append(file)
        await file.create(lambda: self._make_place(name, number))
        return file

    async def commit(self) -> list[StoredFile]:
        """Rename every file to its name, one directly after the other. Raises Fault; then none has its name.

        Not atomic for readers of the directory: they can see some of the files before the others. A file that was
        replaced is put back, except on a file system without hard links, or by a gateway that is killed.
        """
        self._committing = self._disk_threads.start(self._commit)
        await self._disk_threads.wait_sync(self._committing)
        self._is_committed = True
        if self._replaced:
            self._disk_threads.clean_up(lambda: self._remove_replaced(self._replaced), [])
        return [StoredFile(file.name, file.size, file.sha256) for file in self._files]

    def _check_room(self, size: int) -> None:
        room = os.statvfs(self._directory)
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if size > room.f_bavail * room.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _make_place(self, name: str, number: int) -> Path:
        """Check the name of a file, and return its path until the commit."""
        self._check_name(name)
        if self._staging is None:
            self._staging = Staging.make(self._directory)
        return self._staging.path / str(number)

    def _check_name(self, name: str) -> None:
        """Raise Fault where a file cannot get this name, OSError where the directory cannot be used."""
        try:
            mode = (self._directory / name).lstat().st_mode
        except FileNotFoundError:
            return
        except OSError as exc:
            if exc.errno in _BAD_NAME:
                raise name_refused(name) from exc
            raise
        if self._rules.if_exists == "reject":
            raise name_taken(name)
        if self._rules.if_exists == "replace" and stat.S_ISDIR(mode):
            raise name_blocked(name)

    def _commit(self) -> None:
        # Every name before the first rename: a name that the client chose badly changes nothing.
        for file in self._files:
            self._check_name(file.name)
        with contextlib.ExitStack() as undo:
            for file in self._files:
                self._name(file, undo)
            self._sync_directory()
            undo.pop_all()
        replaced = [_path_before(file) for file in self._files] if self._rules.if_exists == "replace" else []
        if sum(map(_count_bytes, replaced)) > _REMOVED_BYTES:
            self._replaced = replaced
        else:
            self._remove_replaced(replaced)

    def _remove_replaced(self, replaced: Sequence[Path]) -> None:
        for path in replaced:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        self._remove_staging()

    def _name(self, file: FileWriter, undo: contextlib.ExitStack) -> None:
        """Give a file its name, and note how to take it back."""
        if self._rules.if_exists == "replace":
            final, before = self._directory / file.name, _path_before(file)
            is_kept = _keep(final, before)
            undo.callback(before.unlink, missing_ok=True)
            file.path.replace(final)
            if is_kept is not None:
                undo.callback(_put_back, final, before if is_kept else None)
            return
        for name in self._rules.candidates(file.name, _MAX_NUMBER):
            final = self._directory / name
            if _take_name(file.path, final):
                file.name = name
                undo.callback(_put_back, final, None)
                return
        raise name_taken(file.name)

    def _sync_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _remove(self) -> None:
        committing = self._committing
        if committing is not None and not committing.cancelled() and committing.exception() is None:
            # Cancelled during a commit that then succeeded: the files are complete and have their names.
            if self._replaced:
                self._remove_replaced(self._replaced)
            return
        with contextlib.ExitStack() as stack:
            # Every file, also where removing one of them fails.
            stack.callback(self._remove_staging)
            for file in self._files:
                stack.callback(file.remove)

    def _remove_staging(self) -> None:
        if self._staging is not None:
            self._staging.remove()


def _path_before(file: FileWriter) -> Path:
    """Return where the file that is replaced stays until the end of the commit."""
    return file.path.with_suffix(".before")


def _count_bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _keep(final: Path, before: Path) -> bool | None:
    """Keep a file that is about to be replaced under a second name; return whether there is one, None if impossible."""
    try:
        os.link(final, before, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        return None
    return True


def _put_back(final: Path, before: Path | None) -> None:
    """Undo a rename: restore the file from before it, or remove the new one. The fault of the commit is the cause."""
    with contextlib.suppress(OSError):
        if before is None:
            final.unlink(missing_ok=True)
        else:
            before.replace(final)


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


def _close_opened(opening: Future[OpenedFile]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()

"""Where the unfinished files of an upload are: a hidden directory beside their final names, held by a lock.

Whatever ends a process, the kernel lets go of its locks. So a staging directory that nobody holds belongs to an upload
that was killed, and is removed at the next start; one that is held is another gateway's, which may share the directory.
A file system that knows no such locks (some NFS) keeps what a killed upload left, as nobody can tell it from one under
way. Files without a name (O_TMPFILE) would need no sweep, but a descriptor for every file of a form until its end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import uuid
from pathlib import Path
from typing import Final, Self

_NAME: Final = re.compile(r"\.[0-9a-f]{32}\.part")


class Staging:
    """The directory of one upload. Every method may block."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._descriptor = descriptor
        self.path = path

    @classmethod
    def make(cls, directory: Path) -> Self:
        """Make one and hold it. Raises OSError."""
        # Again where a sweep comes between its making and its lock: it is the sweep's to remove then.
        while True:
            path = directory / f".{uuid.uuid4().hex}.part"
            path.mkdir(mode=0o700)
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError:
                path.rmdir()
                raise
            if _can_hold(descriptor) and _is_at(descriptor, path):
                return cls(path, descriptor)
            os.close(descriptor)

    def remove(self) -> None:
        """Remove it, if it is empty, and let go."""
        with contextlib.suppress(OSError):
            self.path.rmdir()
        os.close(self._descriptor)


def sweep(directory: Path) -> int:
    """Remove what killed uploads have left in a directory; return how many. Raises OSError."""
    with os.scandir(directory) as entries:
        found = [
            Path(entry) for entry in entries if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    return sum(map(_remove_if_left, found))


def _remove_if_left(path: Path) -> bool:
    """Remove a staging directory nobody holds; what cannot be locked or removed stays."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _can_hold(descriptor: int) -> bool:
    """Lock it; say no where somebody else has. Where there are no locks, nobody sweeps either."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False

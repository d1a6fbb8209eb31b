"""Where the files of an upload are until the commit: a hidden directory beside their final names, locked with flock.

The kernel releases the locks of a process however it ends. So an unlocked staging directory belongs to an upload that
was killed and is removed at the next start; a locked one belongs to another gateway that shares the directory. On a
file system without such locks (some NFS) nothing is removed, because nothing shows which uploads are still running.
Rejected: files without a name (O_TMPFILE). They need no removal, but an open descriptor per file until the end of the
form.
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
    """The staging directory of one upload. Every method may block."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._descriptor = descriptor
        self.path = path

    @classmethod
    def make(cls, directory: Path) -> Self:
        """Create one and lock it. Raises OSError."""
        # Try again if the sweep of another gateway removes the directory between mkdir and flock.
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
            if _can_lock(descriptor) and _is_at(descriptor, path):
                return cls(path, descriptor)
            os.close(descriptor)

    def remove(self) -> None:
        """Remove it if it is empty, and unlock it."""
        with contextlib.suppress(OSError):
            self.path.rmdir()
        os.close(self._descriptor)


def sweep(directory: Path) -> int:
    """Remove the staging directories of killed uploads; return how many. Raises OSError."""
    with os.scandir(directory) as entries:
        found = [
            Path(entry) for entry in entries if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    return sum(map(_remove_if_left, found))


def _remove_if_left(path: Path) -> bool:
    """Remove an unlocked staging directory; return whether it is gone. One that cannot be locked or removed stays."""
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


def _can_lock(descriptor: int) -> bool:
    """Lock it; return False if another process has the lock. Without locks nothing is swept, so that is True."""
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

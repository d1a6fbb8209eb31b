"""The two storages under test, and how to look at, prepare and break what is below them."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from gateway.storage import BucketStorage, DirectoryStorage, DiskThreads, Storage
from gateway.storage.s3 import BucketClient
from tests.s3_server import S3Server

PREFIX = "in/here/"


class Place(Protocol):
    """Where a storage keeps its files. Every method may block."""

    @property
    def storage(self) -> Storage: ...

    @property
    def keeps_replaced(self) -> bool:
        """Whether a commit that fails puts back the files it had replaced."""
        ...

    def names(self) -> list[str]:
        """Return the visible files."""
        ...

    def unfinished(self, name: str = "") -> int:
        """Return how many uploads hold something that is not visible, of one file or of all."""
        ...

    def add(self, name: str, data: bytes) -> None:
        """Put a file where the storage serves it."""
        ...

    def add_outside(self, name: str, data: bytes) -> None:
        """Put a file one level above, where the storage must not reach it."""
        ...

    def content(self, name: str) -> bytes:
        """Return a visible file."""
        ...

    def remove_unfinished(self, number: int, name: str) -> None:
        """Remove an unfinished file, the one of this number and name in its upload, so that the commit fails."""
        ...

    def failing_writes(self, name: str) -> AbstractContextManager[None]:
        """Make writes to an unfinished file fail in the block."""
        ...


class DirectoryPlace:
    """A directory."""

    keeps_replaced = True

    def __init__(self, directory: Path, disk_threads: DiskThreads) -> None:
        self.directory = directory
        self.storage = DirectoryStorage(directory, disk_threads, disk_threads)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir() if not path.name.startswith("."))

    def unfinished(self, name: str = "") -> int:
        del name  # The files of an upload are unfinished together.
        return sum(path.name.startswith(".") for path in self.directory.iterdir())

    def add(self, name: str, data: bytes) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def add_outside(self, name: str, data: bytes) -> None:
        (self.directory.parent / name).write_bytes(data)

    def content(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()

    def remove_unfinished(self, number: int, name: str) -> None:
        next(self.directory.glob(f".*.part/{number}")).unlink()

    @contextmanager
    def failing_writes(self, name: str) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class BucketPlace:
    """A bucket and a prefix on a real server."""

    keeps_replaced = False

    def __init__(self, server: S3Server, disk_threads: DiskThreads) -> None:
        self._server = server
        self.storage = BucketStorage(BucketClient(f"s3://bucket/{PREFIX}", server.url, "us-east-1", 60.0), disk_threads)

    def names(self) -> list[str]:
        keys = sorted(self._server.keys())
        assert all(key.startswith(PREFIX) for key in keys), keys
        return [key.removeprefix(PREFIX) for key in keys]

    def unfinished(self, name: str = "") -> int:
        return self._server.open_uploads(PREFIX + name if name else "")

    def add(self, name: str, data: bytes) -> None:
        self._server.ask(f"/bucket/{PREFIX}{quote(name)}", "PUT", data)

    def add_outside(self, name: str, data: bytes) -> None:
        self._server.ask(f"/bucket/{quote(os.path.dirname(PREFIX.rstrip('/')))}/{quote(name)}", "PUT", data)

    def content(self, name: str) -> bytes:
        return self._server.ask(f"/bucket/{PREFIX}{quote(name)}")

    def remove_unfinished(self, number: int, name: str) -> None:
        self._server.abort_upload(PREFIX + name)

    @contextmanager
    def failing_writes(self, name: str) -> Iterator[None]:
        self._server.abort_upload(PREFIX + name)
        yield

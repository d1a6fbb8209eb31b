"""The interface of a storage. An action knows nothing else about where files are.

    storage.open_upload(rules)            storage.open_file(path)
      async with upload:                    reader.select(first, last)   at most once, before any read
        check_room(size)       optional     reader.read()                until b"", or
        begin(filename)        per file     reader.sendfile_source       where the kernel can send the file
          write(data)          any number   reader.close()               always
          finish()             once
        commit()               once, after every file is finished

An upload is stored completely or not at all: no file is visible under its name before `commit`, and leaving the block
without a commit removes everything. A client repeats a failed upload as a whole and must not find half of it stored.
One task uses an upload or a reader at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from gateway.observe.stats import Leg
from gateway.storage.names import NameRules
from gateway.transfer.sendfile import SendfileSource


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file after the commit of its upload."""

    #: The name it got: see NameRules.
    name: str
    size: int
    #: In hex; None if the storage was asked not to hash it.
    sha256: str | None


class IncomingFile(Protocol):
    """One file of an upload, being written."""

    async def write(self, data: bytes) -> None:
        """Write a chunk. Waits while earlier chunks are still being stored, so that memory stays bounded.

        Raises Fault. Cancelling leaves the file to the upload, which removes it.
        """
        ...

    async def finish(self) -> None:
        """End the file. Raises Fault."""
        ...


class Upload(Protocol):
    """The files of one upload: an async context manager."""

    async def __aenter__(self) -> Self:
        """Return itself; nothing is created before the first file."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove what was not committed."""
        ...

    async def check_room(self, size: int | None) -> None:
        """Check that `size` bytes can be stored (None: unknown). Raises Fault."""
        ...

    async def begin(self, filename: str, *, is_hashed: bool = True) -> IncomingFile:
        """Return a new file to write, hashed with SHA-256 on the way if `is_hashed`.

        Raises Fault: FILE_EXISTS where the name is taken and may not be changed, where two files of one upload would
        replace each other, and where a directory has the name; BAD_FILE_NAME where the storage cannot store it.
        """
        ...

    async def commit(self) -> list[StoredFile]:
        """Make every file visible under its name; return them in the order of `begin`.

        Raises Fault, FILE_EXISTS where a name is taken and may not be changed; then no file has taken a free name.
        """
        ...


class StoredFileReader(Protocol):
    """A stored file, opened for reading. As a source it yields the selected bytes; without a selection, all."""

    @property
    def size(self) -> int:
        """Size of the whole file in bytes."""
        ...

    @property
    def etag(self) -> bytes:
        """Its entity tag, quotes included (RFC 9110 section 8.8.3)."""
        ...

    @property
    def modified_seconds(self) -> float:
        """When it was modified, in seconds since the epoch."""
        ...

    @property
    def sendfile_source(self) -> SendfileSource | None:
        """The selected bytes as a source that the kernel can send; None where the file is not local."""
        ...

    def select(self, first: int, last: int) -> None:
        """Select the bytes from `first` to `last`, both included."""
        ...

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end. Raises Fault, also where the file changed since it was opened."""
        ...

    async def close(self) -> None:
        """Close the file, also in the middle."""
        ...


class Storage(Protocol):
    """A place that stores uploads and serves files."""

    @property
    def write_leg(self) -> Leg:
        """The leg that waits for it are charged to in an upload."""
        ...

    @property
    def read_leg(self) -> Leg:
        """The leg that waits for it are charged to in a download."""
        ...

    async def close(self) -> None:
        """Wait for what goes on by itself after the last upload."""
        ...

    def open_upload(self, rules: NameRules) -> Upload:
        """Return a new upload; enter it before use."""
        ...

    async def open_file(self, path: str) -> StoredFileReader:
        """Open a file by its percent-encoded path below this storage.

        Raises Fault: FILE_NOT_FOUND for a file that is missing and for any path that leads out of the storage.
        """
        ...

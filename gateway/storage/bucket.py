"""A bucket of an object store as a storage: an upload is one multipart upload per file, all completed by the commit."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Final, Self

from gateway.errors import Fault
from gateway.observe.stats import Leg
from gateway.storage.batches import BatchSizes
from gateway.storage.hashing import FileHash
from gateway.storage.interface import StoredFile
from gateway.storage.names import NameRules, file_missing, name_repeated, name_taken, path_segments
from gateway.storage.object import ObjectReader, ObjectWriter
from gateway.storage.s3 import BucketClient
from gateway.storage.threads import DiskThreads

#: Fewer than in a directory: each number tried is a request.
_MAX_NUMBER: Final = 999
#: How long an upload that is cancelled waits for its removal: the client is to be cut within 200 ms.
_CANCELLED_SECONDS: Final = 0.1


class BucketStorage:
    """A bucket and a prefix. The client pools its connections."""

    write_leg: Final = Leg.UPSTREAM_WRITE
    read_leg: Final = Leg.UPSTREAM_READ

    def __init__(self, client: BucketClient, hash_threads: DiskThreads) -> None:
        self._client = client
        self._hash_threads = hash_threads
        self._sizes = BatchSizes()
        #: Abort uploads whose exchange has ended.
        self._aborting: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait until every upload that was cancelled is aborted: an open multipart upload costs money."""
        if self._aborting:
            await asyncio.wait(self._aborting)

    def open_upload(self, rules: NameRules) -> BucketUpload:
        """Return a new upload; enter it before use."""
        return BucketUpload(self._client, self._hash_threads, rules, self._sizes, self._aborting)

    async def open_file(self, path: str) -> ObjectReader:
        """Open an object by its percent-encoded path below the prefix. Raises Fault FILE_NOT_FOUND or the store's."""
        try:
            key = b"/".join(path_segments(path)).decode()
        except UnicodeDecodeError:
            raise file_missing() from None
        info = await self._client.head(key)
        if info is None:
            raise file_missing()
        return ObjectReader(self._client, key, info)


class BucketUpload:
    """The files of one upload to a bucket."""

    def __init__(
        self,
        client: BucketClient,
        hash_threads: DiskThreads,
        rules: NameRules,
        sizes: BatchSizes,
        aborting: set[asyncio.Task[None]],
    ) -> None:
        self._client = client
        self._hash_threads = hash_threads
        self._rules = rules
        self._sizes = sizes
        self._aborting = aborting
        self._objects: list[ObjectWriter] = []
        self._committing: asyncio.Task[list[StoredFile]] | None = None
        self._is_committed = False

    async def __aenter__(self) -> Self:
        """Return itself; nothing is created before the first file."""
        self._sizes.open_count += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Abort what was not committed.

        An upload that is cancelled waits 0.1 s for that, any other until it is done. It goes on by itself in any case.
        """
        self._sizes.open_count -= 1
        if self._is_committed:
            return
        aborting = asyncio.get_running_loop().create_task(self._abort(), name="abort in a bucket")
        self._aborting.add(aborting)
        aborting.add_done_callback(self._aborting.discard)
        await asyncio.wait([aborting], timeout=_CANCELLED_SECONDS if isinstance(exc, asyncio.CancelledError) else None)
        if aborting.done():
            aborting.result()

    async def check_room(self, size: int | None) -> None:
        """Check nothing: an object store has no limit to ask for."""

    async def begin(self, filename: str, *, is_hashed: bool = True) -> ObjectWriter:
        """Return a new file to write. Raises Fault, FILE_EXISTS where the name is taken and must not be."""
        name = self._rules.choose(filename)
        if self._rules.if_exists != "replace":
            name = await self._free_name(name)
        elif any(name == each.key for each in self._objects):
            raise name_repeated(name)
        hashed = FileHash(self._hash_threads) if is_hashed else None
        made = ObjectWriter(self._client, name, hashed, self._sizes)
        self._objects.append(made)
        return made

    async def commit(self) -> list[StoredFile]:
        """Complete every object. Raises Fault; then those that had taken a free name are deleted again.

        Not atomic: an object store completes one object after the other, and keeps no object that was replaced.
        """
        self._committing = asyncio.get_running_loop().create_task(self._commit(), name="commit to a bucket")
        stored = await asyncio.shield(self._committing)
        self._is_committed = True
        return stored

    async def _commit(self) -> list[StoredFile]:
        results = await asyncio.gather(*(each.complete() for each in self._objects), return_exceptions=True)
        failures = [result for result in results if result is not None]
        if failures:
            # An object that has replaced another stays: the other is lost.
            if self._rules.if_exists != "replace":
                with contextlib.suppress(Fault):
                    await self._client.delete([each.key for each in self._objects if each.is_stored])
            raise failures[0]
        return [StoredFile(each.key, each.size, each.sha256) for each in self._objects]

    async def _abort(self) -> None:
        if self._committing is not None:
            # Cancelled during a commit: it succeeds or fails as a whole.
            await asyncio.wait([self._committing])
            if self._committing.exception() is None:
                return
        await asyncio.gather(*(each.abandon() for each in self._objects))

    async def _free_name(self, wanted: str) -> str:
        """Return a name that is free now. S3 cannot reserve it until the commit."""
        taken = {each.key for each in self._objects}
        for name in self._rules.candidates(wanted, _MAX_NUMBER):
            if name not in taken and await self._client.head(name) is None:
                return name
        raise name_taken(wanted)

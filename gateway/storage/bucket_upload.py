"""Objects on their way in: streamed as multipart uploads, completed together at the end, aborted otherwise.

The store's client pulls a file's chunks; the end of each is held back until all files of the upload are there. An
upload given up is told so by raising where the client pulls, which makes it abort: cancelling it would leave its parts
behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, Final, Literal, Self

from gateway.errors import Fault, FaultKind
from gateway.filters import FileHead, FilterContext
from gateway.filters.digest import DigestFactory
from gateway.storage.bucket import PARALLEL_PARTS, PART_BYTES, Bucket, store_fault
from gateway.storage.disk_upload import StoredFile
from gateway.storage.names import numbered, random_name, safe_name

_MAX_NUMBER: Final = 999


class _End(enum.Enum):
    """Whether more of a file comes."""

    OPEN = enum.auto()
    WHOLE = enum.auto()
    GIVEN_UP = enum.auto()


class IncomingObject:
    """One object being written. Made by ObjectUpload.begin."""

    def __init__(self, bucket: Bucket, key: str, threads: Executor) -> None:
        self.name = key
        self.size = 0
        self._errors = bucket.errors
        self._digest = DigestFactory("sha256", FilterContext("", threads))(FileHead(0, "", key, None, None))
        self._chunk = b""
        self._news = asyncio.Event()
        self._taken = asyncio.Event()
        self._taken.set()
        self._end = _End.OPEN
        put = bucket.library.put_async(
            bucket.store, key, self._chunks(), chunk_size=PART_BYTES, max_concurrency=PARALLEL_PARTS
        )
        self._putting = asyncio.get_running_loop().create_task(_run(put), name=f"put {key}")
        # A store that fails takes no more chunks: whoever waits for that must be woken.
        self._putting.add_done_callback(lambda _: self._taken.set())

    async def write(self, data: bytes) -> None:
        """Take data; returns when the store's client has taken what came before. Raises Fault."""
        await self._digest.feed_data(data)
        await self._taken.wait()
        if self._putting.done():
            await self._settle()
        self._taken.clear()
        self._chunk = data
        self.size += len(data)
        self._news.set()

    async def finish(self) -> None:
        """Say that the file has ended; it is completed by the upload's commit. Raises Fault."""
        await self._digest.finish()

    @property
    def sha256(self) -> str:
        """Digest of what was written, in hex."""
        return str(self._digest.facts()["sha256"])

    async def complete(self) -> None:
        """Make the object appear. Raises Fault."""
        self._end = _End.WHOLE
        self._news.set()
        await self._settle()

    async def give_up(self) -> None:
        """Abort the upload, and wait until the store was told."""
        self._end = _End.GIVEN_UP
        self._news.set()
        self._digest.close()
        with contextlib.suppress(Fault, _GivenUp):
            await self._settle()

    async def _settle(self) -> None:
        try:
            await asyncio.shield(self._putting)
        except self._errors as exc:
            raise store_fault(exc) from exc

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            while not self._chunk and self._end is _End.OPEN:
                self._news.clear()
                await self._news.wait()
            if self._end is _End.GIVEN_UP:
                raise _GivenUp
            if not self._chunk:
                return
            chunk, self._chunk = self._chunk, b""
            self._taken.set()
            yield chunk


class ObjectUpload:
    """The files of one upload. An async context manager: leaving it without a commit leaves nothing."""

    def __init__(
        self,
        bucket: Bucket,
        threads: Executor,
        *,
        naming: Literal["original", "uuid"],
        if_exists: Literal["rename", "reject", "replace"],
    ) -> None:
        self._bucket = bucket
        self._threads = threads
        self._naming = naming
        self._if_exists = if_exists
        self._objects: list[IncomingObject] = []
        self._is_committed = False

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Abort what was not committed."""
        if not self._is_committed:
            giving_up = asyncio.gather(*(each.give_up() for each in self._objects))
            try:
                await asyncio.shield(giving_up)
            except asyncio.CancelledError:
                # To the end all the same: an upload left open costs its owner money.
                await giving_up
                raise

    async def check_room(self, length: int | None) -> None:
        """An object store has room."""

    async def begin(self, filename: str) -> IncomingObject:
        """Begin a file. Raises Fault FILE_EXISTS."""
        name = random_name(filename) if self._naming == "uuid" else safe_name(filename)
        if self._if_exists != "replace":
            name = await self._free_name(name)
        made = IncomingObject(self._bucket, name, self._threads)
        self._objects.append(made)
        return made

    async def commit(self) -> list[StoredFile]:
        """Make every object appear. Raises Fault; then those that had appeared are removed again."""
        results = await asyncio.gather(*(each.complete() for each in self._objects), return_exceptions=True)
        faults = [result for result in results if isinstance(result, BaseException)]
        if faults:
            done = [each.name for each, result in zip(self._objects, results, strict=True) if result is None]
            with contextlib.suppress(*self._bucket.errors):
                await self._bucket.library.delete_async(self._bucket.store, done)
            raise faults[0]
        self._is_committed = True
        return [StoredFile(each.name, each.size, each.sha256) for each in self._objects]

    async def _free_name(self, wanted: str) -> str:
        """Return a name that is free now; S3 has no way to hold it until the end of an upload."""
        taken = {each.name for each in self._objects}
        for number in range(_MAX_NUMBER + 1):
            name = numbered(wanted, number) if number else wanted
            if name not in taken and not await self._bucket.has(name):
                return name
            if self._if_exists == "reject":
                break
        raise Fault(
            FaultKind.FILE_EXISTS, f"A file named {wanted!r} exists: choose another name, or set store.if_exists."
        )


async def _run(put: Any) -> Any:
    """Await what obstore gives, which is no coroutine."""
    return await put


class _GivenUp(Exception):
    """The upload was given up."""

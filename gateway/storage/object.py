"""One object of a bucket: written as a multipart upload, or read by ranges of one version.

The store's client pulls the chunks of an object from an iterator. The end of the iterator completes the object, so it
is delayed until the commit; an exception from it aborts the multipart upload. Cancelling the client would not: it
leaves the parts in the bucket, and their owner pays for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncGenerator, AsyncIterator

from gateway.errors import Fault, FaultKind
from gateway.storage.batches import Batches, BatchSizes
from gateway.storage.hashing import FileHash
from gateway.storage.s3 import BucketClient, ObjectInfo


class _State(enum.Enum):
    OPEN = enum.auto()
    COMPLETE = enum.auto()
    ABANDONED = enum.auto()


class ObjectWriter:
    """An object of an upload: the IncomingFile of a BucketUpload. End it with `complete` or `abandon`.

    Between `write` and the store's client there is room for one chunk.
    """

    def __init__(self, client: BucketClient, key: str, hashed: FileHash | None, sizes: BatchSizes) -> None:
        self.key = key
        self.size = 0
        self._hash = hashed
        self._batches = Batches([hashed.work], sizes) if hashed is not None else None
        self._chunk = b""
        self._has_news = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._state = _State.OPEN
        put = client.put(key, self._chunks())
        self._putting = asyncio.get_running_loop().create_task(put, name=f"put {key}")
        # A store that failed pulls no more chunks: a write that waits for room must wake up.
        self._putting.add_done_callback(lambda _: self._has_room.set())

    async def write(self, data: bytes) -> None:
        """Write a chunk; returns when the store's client has taken the one before it. Raises Fault."""
        if self._batches is not None:
            await self._batches.add(data)
        await self._has_room.wait()
        if self._putting.done():
            self._putting.result()
        self._has_room.clear()
        self._chunk = data
        self.size += len(data)
        self._has_news.set()

    async def finish(self) -> None:
        """Finish the digest. The object stays incomplete until `complete`."""
        if self._batches is not None:
            await self._batches.finish()

    @property
    def sha256(self) -> str | None:
        """Digest of what was written, in hex; None if it was not hashed."""
        return self._hash.hexdigest() if self._hash is not None else None

    async def complete(self) -> None:
        """Make the object visible. Raises Fault. Cancelling leaves the call to the store running."""
        self._state = _State.COMPLETE
        self._has_news.set()
        await asyncio.shield(self._putting)

    async def abandon(self) -> None:
        """Abort the multipart upload; returns when the store has done so. An object that is complete stays."""
        self._state = _State.ABANDONED
        self._has_news.set()
        with contextlib.suppress(Fault, _Abandoned):
            await asyncio.shield(self._putting)

    @property
    def is_stored(self) -> bool:
        """Whether the object is visible."""
        return self._putting.done() and not self._putting.cancelled() and self._putting.exception() is None

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            while not self._chunk and self._state is _State.OPEN:
                self._has_news.clear()
                await self._has_news.wait()
            if self._state is _State.ABANDONED:
                raise _Abandoned
            if not self._chunk:
                return
            chunk, self._chunk = self._chunk, b""
            self._has_room.set()
            yield chunk


class ObjectReader:
    """An object, opened for reading: the StoredFileReader of a BucketStorage."""

    sendfile_source = None

    def __init__(self, client: BucketClient, key: str, info: ObjectInfo) -> None:
        self._client = client
        self._key = key
        self.size = info.size
        self.modified_seconds = info.modified_seconds
        self._version = info.etag
        self.etag = (info.etag or "").encode("latin-1", "replace") or b'W/"%x"' % info.size
        self._at, self._end = 0, info.size
        self._chunks: AsyncGenerator[bytes, None] | None = None

    def select(self, first: int, last: int) -> None:
        """Select the bytes from `first` to `last`, both included."""
        self._at, self._end = first, last + 1

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end. Raises Fault, also where the object was replaced."""
        if self._at >= self._end:
            return b""
        if self._chunks is None:
            self._chunks = self._client.get(self._key, self._at, self._end, self._version)
        chunk = await anext(self._chunks, b"")
        if not chunk:
            raise Fault(FaultKind.OBJECT_STORE_FAILED, "The object store sent less than the object's size.")
        self._at += len(chunk)
        return chunk

    async def close(self) -> None:
        """Stop reading, also in the middle: drops the connection to the store."""
        if self._chunks is not None:
            await self._chunks.aclose()


class _Abandoned(Exception):
    """Raised into the store's client to abort a multipart upload."""

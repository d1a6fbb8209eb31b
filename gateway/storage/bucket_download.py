"""Objects on their way out: by ranges, each of the very version whose head was told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from gateway.errors import Fault, FaultKind
from gateway.storage.bucket import Bucket, store_fault

_BLOCK_BYTES: Final = 256 * 1024


class OutgoingObject:
    """An object; as a source it yields bytes `first` to `last` inclusive."""

    def __init__(self, bucket: Bucket, key: str, meta: dict[str, Any]) -> None:
        self._bucket = bucket
        self._key = key
        self.size: int = meta["size"]
        self.modified_seconds: float = meta["last_modified"].timestamp()
        self._version: str = meta["e_tag"] or ""
        self.etag = self._version.encode("latin-1", "replace") or b'W/"%x"' % self.size
        self._first, self._end = 0, self.size
        self._blocks: AsyncIterator[Any] | None = None

    def select(self, first: int, last: int) -> None:
        """Choose the bytes to be read."""
        self._first, self._end = first, last + 1

    async def read(self) -> bytes:
        """Return the next block, b"" at the end. Raises Fault, also when the object has changed."""
        if self._first >= self._end:
            return b""
        try:
            if self._blocks is None:
                options: dict[str, Any] = {"range": (self._first, self._end)}
                if self._version:
                    options["if_match"] = self._version
                got = await self._bucket.library.get_async(self._bucket.store, self._key, options=options)
                self._blocks = aiter(got.stream(min_chunk_size=_BLOCK_BYTES))
            block = bytes(await anext(self._blocks, b""))
        except self._bucket.errors as exc:
            raise store_fault(exc) from exc
        if not block:
            raise Fault(FaultKind.OBJECT_STORE_FAILED, "The object ended before its size.")
        self._first += len(block)
        return block

    async def close(self) -> None:
        """Let go."""
        self._blocks = None


async def open_object(bucket: Bucket, path: str) -> OutgoingObject:
    """Open an object by the rest of a request's path (percent-encoded). Raises Fault FILE_NOT_FOUND or the store's."""
    name = unquote_to_bytes(path)
    missing = Fault(FaultKind.FILE_NOT_FOUND, "There is no such file: check the path behind the route's prefix.")
    if b"\0" in name or any(not segment or segment in (b".", b"..") for segment in name.split(b"/")):
        raise missing
    try:
        key = name.decode()
        meta = await bucket.library.head_async(bucket.store, key)
    except (FileNotFoundError, UnicodeDecodeError):
        raise missing from None
    except bucket.errors as exc:
        raise store_fault(exc) from exc
    return OutgoingObject(bucket, key, meta)

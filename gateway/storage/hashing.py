"""The SHA-256 of a file that is being stored, computed by a thread while another one, or the network, stores it."""

from __future__ import annotations

import hashlib
from typing import Final

from gateway.storage.batches import Batches
from gateway.storage.threads import DiskThreads

#: Up to this many bytes at the end are hashed on the event loop: a thread would cost more.
_INLINE_BYTES: Final = 16 * 1024


class FileHash:
    """The hash of one file: `add` each chunk, then `finish`, then `hexdigest`."""

    def __init__(self, threads: DiskThreads) -> None:
        self._hash = hashlib.sha256()
        self._batches = Batches(threads, self._update)

    async def add(self, chunk: bytes) -> None:
        """Add a chunk; returns when at most one batch before it is still being hashed. Cancelling: see Batches."""
        await self._batches.add(chunk)

    async def finish(self) -> None:
        """Wait until every chunk is hashed."""
        await self._batches.flush(inline_bytes=_INLINE_BYTES)

    def hexdigest(self) -> str:
        """Return the digest; valid after `finish`."""
        return self._hash.hexdigest()

    def _update(self, batch: list[bytes]) -> None:
        for chunk in batch:
            self._hash.update(chunk)

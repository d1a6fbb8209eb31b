"""The SHA-256 of a file that is being stored, computed by a thread while another one, or the network, stores it."""

from __future__ import annotations

import hashlib
from typing import Final

from gateway.storage.batches import BatchWork
from gateway.storage.threads import DiskThreads

#: Up to this many bytes at the end are hashed on the event loop: a thread would cost more.
_INLINE_BYTES: Final = 16 * 1024


class FileHash:
    """The hash of one file: its `work` is done with each batch, then `hexdigest`."""

    def __init__(self, threads: DiskThreads) -> None:
        self._hash = hashlib.sha256()
        self.work = BatchWork(threads, self._update, _INLINE_BYTES)

    def hexdigest(self) -> str:
        """Return the digest of what was worked on."""
        return self._hash.hexdigest()

    def _update(self, batch: list[bytes]) -> None:
        for chunk in batch:
            self._hash.update(chunk)

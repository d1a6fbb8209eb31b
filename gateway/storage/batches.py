"""Chunks of a file, collected into batches that a thread works through while the next batch is received.

A thread per chunk would cost more than the work on it. At most two batches are held: one in the thread, one being
collected.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from gateway.storage.threads import DiskThreads

BATCH_BYTES: Final = 512 * 1024


class Batches:
    """The work on one file: one call at a time, in the order given.

    `add`, `flush`, `run` and `sync` are called from one task.
    """

    def __init__(self, disk_threads: DiskThreads, work: Callable[[list[bytes]], None]) -> None:
        self._disk_threads = disk_threads
        self._work = work
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        #: The call that runs, or failed. Kept while it runs: after a cancellation, the cleanup waits for it.
        self.running: Future[None] | None = None

    async def add(self, chunk: bytes) -> None:
        """Add a chunk; returns when at most one batch before it is still being worked on.

        Raises Fault for an earlier batch. Cancelling leaves the thread running.
        """
        self._batch.append(chunk)
        self._batch_bytes += len(chunk)
        if self._batch_bytes >= BATCH_BYTES:
            await self._start_batch()

    async def flush(self, *, inline_bytes: int = 0) -> None:
        """Wait until every chunk is worked on. Raises Fault.

        The work on up to `inline_bytes` that are left is done here, not by a thread: it must not block then.
        """
        if self._batch_bytes <= inline_bytes:
            await self._wait()
            if self._batch:
                self._work(self._take_batch())
            return
        await self._start_batch()
        await self._wait()

    async def run(self, call: Callable[[], None]) -> None:
        """Run a call after every chunk added so far. Raises Fault."""
        await self.flush()
        self.running = self._disk_threads.start(call)
        await self._wait()

    async def sync(self, call: Callable[[], None]) -> None:
        """Run a call that syncs the file, after every chunk added so far. Raises Fault."""
        await self.flush()
        self.running = self._disk_threads.start(call)
        await self._disk_threads.wait_sync(self.running)
        self.running = None

    async def _start_batch(self) -> None:
        await self._wait()
        if self._batch:
            batch = self._take_batch()
            self.running = self._disk_threads.start(lambda: self._work(batch))

    def _take_batch(self) -> list[bytes]:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        return batch

    async def _wait(self) -> None:
        if self.running is not None:
            await self._disk_threads.wait(self.running)
            self.running = None

"""Chunks of a file, collected into batches that threads work through while the next ones are received.

A thread per chunk would cost more than the work on it. Two kinds of work, such as to write and to hash, are done by two
threads on the same chunks. Each kind has one batch in its thread and one that waits for it, which the thread takes by
itself: before, it waited for the event loop to give it one, a tenth of the time of an upload on two cores. A third
batch is being collected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from gateway.storage.threads import DiskThreads

#: Larger batches cost fewer changes of threads: of 1 MiB chunks, two in place of one save a tenth of the CPU time.
_MAX_BATCH_BYTES: Final = 1536 * 1024
_MIN_BATCH_BYTES: Final = 384 * 1024
#: Memory for the batches of all uploads to one storage, as far as the minimum per upload allows.
_ALL_BATCHES_BYTES: Final = 8 * 2**20
#: Held of one file: in the threads, waiting for them, and being collected.
HELD_BATCHES: Final = 3


class BatchSizes:
    """How large the batches of a storage are: smaller if more uploads are open."""

    def __init__(self) -> None:
        self.open_count = 0

    @property
    def least_bytes(self) -> int:
        """A batch is complete with this many bytes."""
        share = _ALL_BATCHES_BYTES // (HELD_BATCHES * (self.open_count or 1))
        return min(_MAX_BATCH_BYTES, max(_MIN_BATCH_BYTES, share))


@dataclass(frozen=True, slots=True)
class BatchWork:
    """What is done with every batch, in their order, by one thread at a time."""

    threads: DiskThreads
    call: Callable[[list[bytes]], None]
    #: The last batch is worked on by the event loop if it has no more bytes than this: the call must not block then.
    inline_bytes: int = 0


class Batches:
    """The work on one file.

    `add`, `run`, `finish` and `sync` are called from one task. They raise the Fault of any call before. Cancelling them
    leaves calls running: `stop` returns those.
    """

    def __init__(self, works: Sequence[BatchWork], sizes: BatchSizes) -> None:
        self._sizes = sizes
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._queues = [_Queue(work) for work in works]

    async def add(self, chunk: bytes) -> None:
        """Add a chunk; returns when no more than two batches are being worked on, or wait for it."""
        self._batch.append(chunk)
        self._batch_bytes += len(chunk)
        if self._batch_bytes >= self._sizes.least_bytes:
            for queue in self._queues:
                await queue.make_room()
            self._start_batch(self._queues)

    async def run(self, call: Callable[[], None]) -> None:
        """Run a call in a thread of the first work, before any chunk is added."""
        self._queues[0].start(call)
        await self._queues[0].wait()

    async def finish(self) -> None:
        """Wait until every chunk is worked on."""
        await self._start_last()
        for queue in self._queues:
            await queue.wait()

    async def sync(self, call: Callable[[], None]) -> None:
        """Run a call that syncs the file after the first work, and wait until every chunk is worked on."""
        await self._start_last()
        first, *others = self._queues
        syncing = first.start(call)
        for queue in others:
            await queue.wait()
        await first.wait_until(syncing)
        await first.work.threads.wait_sync(syncing)
        first.started.clear()

    def stop(self) -> list[Future[None]]:
        """Drop the calls of the first work that have not begun; return the others."""
        return self._queues[0].stop()

    async def _start_last(self) -> None:
        """Start the work on what is left."""
        if not self._batch:
            return
        inline = [queue for queue in self._queues if self._batch_bytes <= queue.work.inline_bytes]
        threaded = [queue for queue in self._queues if queue not in inline]
        for queue in threaded:
            await queue.make_room()
        for queue in inline:
            await queue.wait()
            queue.work.call(self._batch)
        self._start_batch(threaded)

    def _start_batch(self, queues: Sequence[_Queue]) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        for queue in queues:
            queue.start_batch(batch)


class _Queue:
    """The calls of one work: one that runs, and one that waits for it."""

    def __init__(self, work: BatchWork) -> None:
        self.work = work
        #: Kept while they run: after a cancellation, the cleanup waits for them.
        self.started: deque[Future[None]] = deque()

    async def make_room(self) -> None:
        """Wait until no more than one call is left. Raises Fault."""
        while len(self.started) > 1:
            await self._wait_first()

    async def wait(self) -> None:
        """Wait until no call is left. Raises Fault."""
        while self.started:
            await self._wait_first()

    async def wait_until(self, last: Future[None]) -> None:
        """Wait until no call is left before the last one. Raises Fault."""
        while self.started[0] is not last:
            await self._wait_first()

    def start(self, call: Callable[[], None]) -> Future[None]:
        """Start a call after those that are left. Raises Fault."""
        started = self.work.threads.start(call, self.started[-1] if self.started else None)
        self.started.append(started)
        return started

    def start_batch(self, batch: list[bytes]) -> None:
        """Start the work on a batch. Raises Fault."""
        self.start(lambda: self.work.call(batch))

    def stop(self) -> list[Future[None]]:
        """Drop the calls that have not begun; return the others."""
        for started in reversed(self.started):
            self.work.threads.drop(started)
        return [started for started in self.started if not started.cancelled()]

    async def _wait_first(self) -> None:
        await self.work.threads.wait(self.started[0])
        self.started.popleft()

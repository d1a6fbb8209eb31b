"""One body going one way: pulled by the far side, watched for silence, counted as it flows, ended exactly once.

The far side calls `pull` (or hands `pour` something to write with); the time until it pulls again is the time its
sink took. So every second of a transfer is charged to the side that made it wait, and the sides add up to its wall
time. Backpressure is not a feature here: it is what happens when nobody pulls.

A source returns chunks of at least one byte and b"" at its end; it raises Fault when it breaks, and remembers. A
filter sees each chunk before it is passed on, and may raise. The end of a body of known length is announced to the
filters before its last chunk is passed on, so that a body found wanting at its end never arrives whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

from gateway.errors import Fault, FaultKind, Outcome
from gateway.observe.stats import Direction, Leg, RouteStats
from gateway.transfer.stall import TransferPolicy, Watch
from gateway.transfer.timers import Timers


class Source(Protocol):
    """Where chunks come from."""

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end. Raises Fault if the body breaks off."""
        ...


class Filter(Protocol):
    """Sees every chunk on its way."""

    def feed_data(self, chunk: bytes) -> None:
        """Judge a chunk before it is passed on. Raises Fault."""
        ...

    def finish(self) -> None:
        """Judge the end of the body. Raises Fault."""
        ...

    def close(self) -> None:
        """Let go, however the body ended."""
        ...


class AwaitedFilter(Protocol):
    """Has more to do with what it saw than can be done at once."""

    async def flush(self) -> None:
        """Do it, before the chunk is passed on. Raises Fault."""
        ...


def nothing_pending() -> int:
    """Say that no written bytes wait: for stretches whose sink keeps none, see `Transfer.watched`."""
    return 0


class Owner(Protocol):
    """Whose transfer it is: asked at its end, and let go then, so that neither waits for the garbage collector."""

    @property
    def is_delivered(self) -> bool:
        """Whether a client that has left had its whole answer before."""
        ...

    def why_cancelled(self) -> Fault:
        """Say why the transfer was cancelled."""
        ...


class Transfer:
    """One body on its way. A context manager: leaving it ends the transfer, as cut if nobody said otherwise."""

    def __init__(
        self,
        policy: TransferPolicy,
        source: Source,
        stats: RouteStats,
        timers: Timers,
        *,
        owner: Owner,
        length: int | None,
        filters: Sequence[Filter] = (),
        awaited: Sequence[AwaitedFilter] = (),
    ) -> None:
        self._owner: Owner | None = owner
        self.policy = policy
        self._source = source
        self._filters = filters
        self._awaited = awaited
        self._length = length
        self._timers = timers
        self._stats = stats.transfers[policy.direction]
        self._waits = stats.waits
        self.outcome: Outcome | None = None
        #: What broke it, whoever noticed.
        self.fault: Fault | None = None
        self.is_exhausted = False
        #: How most of its bytes were moved; "copy" unless a lane says otherwise.
        self.lane = "copy"
        self._is_poured = False
        #: Bytes handed to the sink, and seconds waited for (read side, write side).
        self.moved_bytes = 0
        self.read_seconds = 0.0
        self.write_seconds = 0.0
        self.filter_seconds = 0.0
        self.started = self._since = time.monotonic()
        self._out_bytes = 0
        self._chunk_began = self.started
        self._waiting_on = policy.read_leg

    def __enter__(self) -> Self:
        """Begin: from here on it counts as in flight."""
        self._stats.in_flight += 1
        self.started = self._since = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End: complete if everything was pulled and nobody raised."""
        if self.outcome is None:
            self.end(self._judge_end(exc))
        filters, self._filters, self._awaited, self._owner = self._filters, (), (), None
        for each in filters:
            each.close()

    def _judge_end(self, exc: BaseException | None) -> Outcome:
        """Return how it ended: its own failure first, then whether it was delivered, then what broke around it."""
        if self.fault is not None:
            return self.fault.outcome
        if self._is_poured or (exc is None and self.is_whole):
            return Outcome.COMPLETE
        if isinstance(exc, Fault):
            return exc.outcome
        if self._owner is not None and (exc is None or isinstance(exc, asyncio.CancelledError)):
            is_delivered = self.policy.direction is Direction.DOWNLOAD and self._owner.is_delivered
            return Outcome.COMPLETE if is_delivered else self._owner.why_cancelled().outcome
        return Outcome.BUG

    @property
    def is_whole(self) -> bool:
        """Whether every byte of the body was handed on."""
        return self.is_exhausted or (self._length is not None and self.moved_bytes == self._length)

    def end(self, outcome: Outcome) -> None:
        """End the transfer. Only the first call counts."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        stats = self._stats
        stats.in_flight -= 1
        stats.outcomes[outcome] += 1
        stats.lanes[self.lane] += 1
        stats.sizes.observe(self.moved_bytes)
        seconds = time.monotonic() - self.started
        if self.moved_bytes and seconds > 0:
            stats.rates.observe(self.moved_bytes / seconds)

    def fail(self, fault: Fault) -> None:
        """Note what broke it, if nothing did before."""
        self.fault = self.fault or fault

    @property
    def left_bytes(self) -> int | None:
        """How much of the body is still to come; None where its length is not known."""
        return None if self._length is None else self._length - self.moved_bytes

    @property
    def has_filters(self) -> bool:
        """Whether a filter must see the bytes."""
        return bool(self._filters)

    async def pull(self) -> bytes:
        """Return the next chunk for the sink, b"" at the end.

        Raises the source's or a filter's Fault, also on every further call. Cancelling leaves the rest unread.
        """
        return await self.pull_from(self._source.read)

    async def pull_from(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """Pull from another reading end of the same source, see `pull`."""
        self._settle(time.monotonic())
        if self.fault is not None:
            raise self.fault
        if self.is_exhausted:
            return b""
        self._waiting_on = self.policy.read_leg
        try:
            chunk = await read()
            self._charge_read(time.monotonic())
            if chunk:
                self._judge(chunk)
            else:
                self._end_source()
            if self._awaited:
                with self.filtering():
                    for each in self._awaited:
                        await each.flush()
            if chunk:
                self._count(len(chunk))
        except Fault as fault:
            self.fault = self.fault or fault
            raise
        self._waiting_on = self.policy.write_leg
        return chunk

    async def pull_count(self, take: Callable[[], Awaitable[int]]) -> None:
        """Pull bytes that nobody sees: `take` moves some towards the sink and returns how many."""
        self._settle(time.monotonic())
        self._waiting_on = self.policy.read_leg
        try:
            size = await take()
        except Fault as fault:
            self.fault = self.fault or fault
            raise
        self._charge_read(time.monotonic())
        if size:
            self._count(size)
        self._waiting_on = self.policy.write_leg

    def count_late(self, size: int) -> None:
        """Count bytes that left although the wait for them was cancelled."""
        if size:
            self._count(size)

    async def pour(
        self,
        write: Callable[[bytes], Awaitable[None]],
        pending: Callable[[], int],
        finish: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Pull every chunk into `write`, then `finish`. `pending` tells how many written bytes have not left yet.

        Raises Fault for the source, a filter or a side that stalls; what `write` raises passes through.
        """
        read = self._source.read
        with self.watched(pending):
            # A body of known length needs no look behind its last byte.
            while self.moved_bytes != self._length and (chunk := await self.pull_from(read)):
                await write(chunk)
            if finish is not None:
                await finish()
            self._is_poured = True

    def watched(self, pending: Callable[[], int]) -> Stretch:
        """Watch the pace while the block pulls. A stall cancels what it awaits and comes out as its Fault."""
        return Stretch(self, pending)

    def begin_stretch(self, pending: Callable[[], int]) -> Watch:
        """Begin to watch the pace."""
        now = self._since = self._chunk_began = time.monotonic()
        return Watch(self, self.policy, pending, self._timers, now)

    def end_stretch(self) -> None:
        """Charge what is left to be charged: nobody pulls for now."""
        self._settle(time.monotonic())

    @contextmanager
    def filtering(self) -> Iterator[None]:
        """Charge the block to the filters."""
        self._settle(time.monotonic())
        self._waiting_on = Leg.FILTER
        try:
            yield
        finally:
            now = time.monotonic()
            self.filter_seconds += now - self._since
            self._waits[Leg.FILTER] += now - self._since
            self._since = now
            self._waiting_on = self.policy.write_leg

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Charge the block to the write side, unwatched: the sink has its own bounds for what it waits for."""
        self._waiting_on = self.policy.write_leg
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._settle(time.monotonic())

    @property
    def waiting_on(self) -> Leg:
        """The side being waited for now."""
        return self._waiting_on

    @property
    def waiting_since(self) -> float:
        """When that wait began, on the monotonic clock."""
        return self._since

    def _settle(self, now: float) -> None:
        """Charge the time since the last look to the side being waited for; the chunk handed out is done with."""
        if self._waiting_on is self.policy.read_leg:
            self._charge_read(now)
            return
        waited = now - self._since
        self.write_seconds += waited
        self._waits[self.policy.write_leg] += waited
        self._since = now
        if not self._out_bytes:
            return
        self._stats.chunk_rates.observe(self._out_bytes / ((now - self._chunk_began) or 1e-9))
        self._out_bytes = 0
        self._chunk_began = now

    def _charge_read(self, now: float) -> None:
        waited = now - self._since
        self.read_seconds += waited
        self._waits[self.policy.read_leg] += waited
        self._since = now

    def _judge(self, chunk: bytes) -> None:
        size = len(chunk)
        for each in self._filters:
            each.feed_data(chunk)
        if self.moved_bytes + size == self._length:
            self._finish_filters()

    def _count(self, size: int) -> None:
        self.moved_bytes += size
        self._out_bytes = size
        stats = self._stats
        stats.bytes_moved += size
        stats.chunk_sizes.observe(size)

    def _end_source(self) -> None:
        if self._length is None:
            self._finish_filters()
        elif self.moved_bytes != self._length:
            raise Fault(
                FaultKind.CLIENT_LEFT if self.policy.direction is Direction.UPLOAD else FaultKind.RESPONSE_INCOMPLETE,
                f"The body ended after {self.moved_bytes} of {self._length} bytes.",
            )
        elif not self._length:
            self._finish_filters()
        self.is_exhausted = True

    def _finish_filters(self) -> None:
        for each in self._filters:
            each.finish()


class Stretch:
    """A stretch of a transfer that is watched. A class and not a generator, which would cost each body 2 us more."""

    __slots__ = ("_pending", "_transfer", "_watch")

    def __init__(self, transfer: Transfer, pending: Callable[[], int]) -> None:
        self._transfer = transfer
        self._pending = pending

    def __enter__(self) -> None:
        """Begin to watch the task that runs."""
        self._watch: Watch = self._transfer.begin_stretch(self._pending)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Watch no more. Raises the Fault of a stall that cancelled the block."""
        watch, transfer = self._watch, self._transfer
        watch.stop()
        transfer.end_stretch()
        if watch.fault is None or not isinstance(exc, asyncio.CancelledError):
            return
        task = asyncio.current_task()
        # Cancelled by the watch alone: a client that left at the same moment still counts as cancelled.
        if task is not None and task.uncancel() > 0:
            return
        transfer.fail(watch.fault)
        raise transfer.fault or watch.fault from None

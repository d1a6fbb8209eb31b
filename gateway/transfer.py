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
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from gateway.errors import Fault, FaultKind, Outcome
from gateway.tally import Direction, RouteTally, Side


class Source(Protocol):
    """Where chunks come from."""

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end. Raises Fault if the body breaks off."""
        ...


class Filter(Protocol):
    """Sees every chunk on its way."""

    def see(self, chunk: bytes) -> None:
        """Judge a chunk before it is passed on. Raises Fault."""
        ...

    def finish(self) -> None:
        """Judge the end of the body. Raises Fault."""
        ...

    def close(self) -> None:
        """Let go, however the body ended."""
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How slow one side may be: seconds of silence, and bytes per second over `grace_seconds`."""

    idle_seconds: float = math.inf
    min_rate: float = 0.0
    grace_seconds: float = math.inf


@dataclass(frozen=True, slots=True)
class Course:
    """What is fixed about a transfer before its first byte."""

    direction: Direction
    #: The side chunks are read from and the side they are written to.
    read_side: Side
    write_side: Side
    read_pace: Pace = Pace()
    write_pace: Pace = Pace()
    total_seconds: float = math.inf


#: Fault for (silent, too slow) by side.
_STALLED: Final[dict[Side, tuple[FaultKind, FaultKind, str]]] = {
    Side.DOWNSTREAM_READ: (FaultKind.CLIENT_IDLE, FaultKind.CLIENT_TOO_SLOW, "The client sent"),
    Side.DOWNSTREAM_WRITE: (FaultKind.CLIENT_IDLE, FaultKind.CLIENT_TOO_SLOW, "The client took"),
    Side.UPSTREAM_READ: (FaultKind.UPSTREAM_IDLE, FaultKind.UPSTREAM_IDLE, "The upstream sent"),
    Side.UPSTREAM_WRITE: (FaultKind.UPSTREAM_STUCK, FaultKind.UPSTREAM_STUCK, "The upstream took"),
    Side.DISK_WRITE: (FaultKind.DISK_SLOW, FaultKind.DISK_SLOW, "The disk took"),
    Side.DISK_READ: (FaultKind.DISK_SLOW, FaultKind.DISK_SLOW, "The disk gave"),
}
#: How often a watch looks, in times per shortest limit.
_LOOKS: Final = 4
_MIN_LOOK_SECONDS: Final = 0.02


class Transfer:
    """One body on its way. A context manager: leaving it ends the transfer, as cut if nobody said otherwise."""

    def __init__(
        self,
        course: Course,
        source: Source,
        tally: RouteTally,
        *,
        length: int | None,
        filters: Sequence[Filter] = (),
        why_cancelled: Callable[[], Fault],
    ) -> None:
        self._why_cancelled = why_cancelled
        self.course = course
        self._source = source
        self._filters = filters
        self._length = length
        self._tally = tally.transfers[course.direction]
        self._waits = tally.waits
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
        self._started = self._since = time.monotonic()
        self._out_bytes = 0
        self._chunk_began = self._started
        self._waiting_on = course.read_side

    def __enter__(self) -> Self:
        """Begin: from here on it counts as in flight."""
        self._tally.in_flight += 1
        self._started = self._since = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End: complete if everything was pulled and nobody raised."""
        for each in self._filters:
            each.close()
        if self.outcome is None:
            self.end(self._judge_end(exc))

    def _judge_end(self, exc: BaseException | None) -> Outcome:
        """Return how it ended: its own failure first, then whether it was delivered, then what broke around it."""
        if self.fault is not None:
            return self.fault.outcome
        if self._is_poured or (exc is None and self.is_whole):
            return Outcome.COMPLETE
        if isinstance(exc, Fault):
            return exc.outcome
        if exc is None or isinstance(exc, asyncio.CancelledError):
            return self._why_cancelled().outcome
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
        tally = self._tally
        tally.in_flight -= 1
        tally.outcomes[outcome] += 1
        tally.lanes[self.lane] += 1
        tally.sizes.observe(self.moved_bytes)
        seconds = time.monotonic() - self._started
        if self.moved_bytes and seconds > 0:
            tally.rates.observe(self.moved_bytes / seconds)

    @property
    def left_bytes(self) -> int | None:
        """How much of the body is still to come; None where its length is not known."""
        return None if self._length is None else self._length - self.moved_bytes

    @property
    def is_seen(self) -> bool:
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
        self._waiting_on = self.course.read_side
        try:
            chunk = await read()
            self._charge_read(time.monotonic())
            if chunk:
                self._judge(chunk)
            else:
                self._end_source()
        except Fault as fault:
            self.fault = self.fault or fault
            raise
        self._waiting_on = self.course.write_side
        return chunk

    async def pull_count(self, take: Callable[[], Awaitable[int]]) -> None:
        """Pull bytes that nobody sees: `take` moves some towards the sink and returns how many."""
        self._settle(time.monotonic())
        self._waiting_on = self.course.read_side
        try:
            size = await take()
        except Fault as fault:
            self.fault = self.fault or fault
            raise
        self._charge_read(time.monotonic())
        if size:
            self._count(size)
        self._waiting_on = self.course.write_side

    async def pour(
        self,
        write: Callable[[bytes], Awaitable[None]],
        pending: Callable[[], int],
        finish: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Pull every chunk into `write`, then `finish`. `pending` tells how many written bytes have not left yet.

        Raises Fault for the source, a filter or a side that stalls; what `write` raises passes through.
        """
        pull = self.pull
        with self.watched(pending):
            while chunk := await pull():
                await write(chunk)
            if finish is not None:
                await finish()
            self._is_poured = True

    @contextmanager
    def watched(self, pending: Callable[[], int]) -> Iterator[None]:
        """Watch the pace while the block pulls. A stall cancels what it awaits and comes out as its Fault."""
        self._since = self._chunk_began = time.monotonic()
        watch = _Watch(self, self.course, pending)
        try:
            yield
        except asyncio.CancelledError:
            if watch.fault is None:
                raise
            task = asyncio.current_task()
            # Cancelled by the watch alone: a client that left at the same moment still counts as cancelled.
            if task is not None and task.uncancel() > 0:
                raise
            self.fault = self.fault or watch.fault
            raise self.fault from None
        finally:
            watch.stop()
            self._settle(time.monotonic())

    @property
    def waiting_on(self) -> Side:
        """The side being waited for now."""
        return self._waiting_on

    @property
    def waiting_since(self) -> float:
        """When that wait began, on the monotonic clock."""
        return self._since

    def _settle(self, now: float) -> None:
        """Charge the time since the last look to the side being waited for; the chunk handed out is done with."""
        if self._waiting_on is self.course.read_side:
            self._charge_read(now)
            return
        waited = now - self._since
        self.write_seconds += waited
        self._waits[self.course.write_side] += waited
        self._since = now
        if not self._out_bytes:
            return
        self._tally.chunk_rates.observe(self._out_bytes / ((now - self._chunk_began) or 1e-9))
        self._out_bytes = 0
        self._chunk_began = now

    def _charge_read(self, now: float) -> None:
        waited = now - self._since
        self.read_seconds += waited
        self._waits[self.course.read_side] += waited
        self._since = now

    def _judge(self, chunk: bytes) -> None:
        size = len(chunk)
        for each in self._filters:
            each.see(chunk)
        if self.moved_bytes + size == self._length:
            self._finish_filters()
        self._count(size)

    def _count(self, size: int) -> None:
        self.moved_bytes += size
        self._out_bytes = size
        tally = self._tally
        tally.bytes_moved += size
        tally.chunk_sizes.observe(size)

    def _end_source(self) -> None:
        if self._length is None:
            self._finish_filters()
        elif self.moved_bytes != self._length:
            raise Fault(
                FaultKind.CLIENT_LEFT if self.course.direction is Direction.UPLOAD else FaultKind.RESPONSE_INCOMPLETE,
                f"The body ended after {self.moved_bytes} of {self._length} bytes.",
            )
        elif not self._length:
            self._finish_filters()
        self.is_exhausted = True

    def _finish_filters(self) -> None:
        for each in self._filters:
            each.finish()


class _Watch:
    """Looks at a transfer a few times per limit; costs nothing per chunk."""

    def __init__(self, transfer: Transfer, course: Course, pending: Callable[[], int]) -> None:
        self.fault: Fault | None = None
        self._transfer = transfer
        self._course = course
        self._pending = pending
        self._task = asyncio.current_task()
        now = time.monotonic()
        self._started = self._progress_at = self._window_began = now
        self._last_pending = 0
        self._window_read, self._window_write = transfer.read_seconds, transfer.write_seconds
        self._window_bytes = transfer.moved_bytes
        paces = (course.read_pace, course.write_pace)
        shortest = min(course.total_seconds, *(p.idle_seconds for p in paces), *(p.grace_seconds for p in paces))
        self._grace = min(pace.grace_seconds for pace in paces)
        self._look_seconds = max(shortest / _LOOKS, _MIN_LOOK_SECONDS)
        self._timer: asyncio.TimerHandle | None = None
        if not math.isinf(shortest):
            self._arm()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._look_seconds, self._look)

    def _look(self) -> None:
        now = time.monotonic()
        self.fault = self._find_stall(now)
        if self.fault is None:
            self._arm()
        elif self._task is not None:
            self._task.cancel()

    def _find_stall(self, now: float) -> Fault | None:
        transfer, course = self._transfer, self._course
        side = transfer.waiting_on
        is_writing = side is course.write_side
        pending = self._pending() if is_writing else 0
        if pending != self._last_pending:
            # A big chunk may leave slowly: bytes that drain are progress too.
            self._last_pending = pending
            self._progress_at = now
        silent_seconds = now - max(transfer.waiting_since, self._progress_at)
        pace = course.write_pace if is_writing else course.read_pace
        moved = transfer.moved_bytes - pending
        if silent_seconds >= pace.idle_seconds:
            return _stall(side, 0, f"nothing for {pace.idle_seconds:g} s after {moved} bytes")
        if now - self._started >= course.total_seconds:
            return _stall(side, 1, f"{moved} bytes within the {course.total_seconds:g} s a transfer may take")
        if now - self._window_began >= self._grace:
            return self._find_slowness(now, moved)
        return None

    def _find_slowness(self, now: float, moved: int) -> Fault | None:
        """Compare the bytes of the last window with the seconds each side was waited for in it."""
        transfer, course = self._transfer, self._course
        waiting = now - transfer.waiting_since
        is_writing = transfer.waiting_on is course.write_side
        seconds = {
            course.read_side: transfer.read_seconds - self._window_read + (0.0 if is_writing else waiting),
            course.write_side: transfer.write_seconds - self._window_write + (waiting if is_writing else 0.0),
        }
        fresh = moved - self._window_bytes
        window = now - self._window_began
        for side, pace in ((course.read_side, course.read_pace), (course.write_side, course.write_pace)):
            if seconds[side] > window / 2 and fresh < pace.min_rate * seconds[side]:
                return _stall(
                    side,
                    1,
                    f"{fresh} bytes in {window:.3g} s and at least {pace.min_rate:g} bytes/s are asked for",
                )
        self._window_began, self._window_bytes = now, moved
        self._window_read = transfer.read_seconds + (0.0 if is_writing else waiting)
        self._window_write = transfer.write_seconds + (waiting if is_writing else 0.0)
        return None


def _stall(side: Side, index: int, what: str) -> Fault:
    row = _STALLED[side]
    kind = row[1] if index else row[0]
    return Fault(kind, f"{row[2]} {what}: check the line and the peer, or raise the route's timeouts.")

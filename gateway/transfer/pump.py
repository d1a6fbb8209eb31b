"""One body in one direction: pulled from its source, judged by filters, counted, pushed into its sink, ended once.

    source (client, upstream, file)                                   sink (upstream, client, disk)
        |                                                                 ^
        |  lane.read                                          lane.write  |
        +-----------> pull ---> judge ---> count ---> push ---------------+
                       |          |          |          |
                  charged to   filters    Meter     charged to
                  the read leg may raise            the write leg

`pump` is the one loop that moves chunks; a lane (`gateway.transfer.lanes`) is where it reads and writes. Actions that
consume a body themselves (to disk, file by file, encoded anew) call `Transfer.pull` in place of the loop. Backpressure
needs no code: while the sink is slow, nothing is pulled.

A source returns chunks of at least one byte and b"" at its end; it raises Fault when it breaks. A filter sees each
chunk before it is passed on, and may raise. Where the length is known, filters see the end of the body before its last
chunk is passed on, so a body that is refused at its end never arrives whole.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar

from gateway.errors import Fault, FaultKind, Outcome
from gateway.observe.stats import Direction
from gateway.observe.waits import Waits
from gateway.transfer.interface import AsyncFilter, Filter, Owner, Source
from gateway.transfer.meter import Meter
from gateway.transfer.policy import TransferPolicy
from gateway.transfer.progress import Progress, no_progress
from gateway.transfer.stall import StallDetector
from gateway.transfer.timers import TimerQueue, Timers
from gateway.transfer.turns import Turn, Turns

#: What one read returns: bytes, or how many bytes stay in the kernel where no filter has to see them.
_Chunk = TypeVar("_Chunk", bytes, int)


class Lane(Protocol[_Chunk]):
    """One way to move the bytes of a transfer."""

    @property
    def read(self) -> Callable[[], Awaitable[_Chunk]]:
        """Return a chunk, b"" at the end; or, in the kernel, how many bytes were moved, 0 if none could be.

        The time is charged to the read leg. Raises Fault.
        """
        ...

    @property
    def write(self) -> Callable[[_Chunk], Awaitable[None]]:
        """Pass on what `read` returned. Raises Fault, or OSError if the sink is gone."""
        ...

    @property
    def acknowledged(self) -> Progress:
        """Return the progress of the peer that is written to, see `gateway.transfer.progress`."""
        ...


class Transfer:
    """One body, from its first byte to its single end.

        call                valid                effect
        with transfer       once                 starts; leaving it ends the transfer and closes its filters
        watched(progress)   within `with`        the block is charged to the legs; one that stalls cancels it and raises
                                                 its Fault
        pull(read)          within `watched`     the next chunk, judged and counted; b"" at the end
        fail(fault)         any time             records what broke the body, if nothing did before
        end(outcome)        any time             ends it; only the first call counts

    `fault` is the one place where the failure of a body is remembered: the first that was reported.
    """

    __slots__ = (
        "_async_filters",
        "_filters",
        "_is_complete",
        "_owner",
        "_source",
        "_timers",
        "fault",
        "is_exhausted",
        "length",
        "meter",
        "policy",
    )

    def __init__(
        self,
        policy: TransferPolicy,
        source: Source,
        waits: Waits,
        timers: Timers,
        *,
        owner: Owner,
        length: int | None,
        filters: Sequence[Filter] = (),
        async_filters: Sequence[AsyncFilter] = (),
    ) -> None:
        self.policy = policy
        self.meter = Meter(policy, waits)
        self._source = source
        #: Bytes of the whole body; None where they are not known.
        self.length = length
        self._filters = filters
        self._async_filters = async_filters
        # Dropped at the end: neither must wait for the garbage collector.
        self._owner: Owner | None = owner
        self._timers = timers
        self.fault: Fault | None = None
        #: Whether the source has ended.
        self.is_exhausted = False
        #: Whether the end of the body was passed on, too.
        self._is_complete = False

    async def pull(self, read: Callable[[], Awaitable[_Chunk]]) -> _Chunk:
        """Return the next chunk for the sink: read, judged, counted. b"" at the end.

        Raises the Fault of the source or of a filter, also on every further call. Cancelling leaves the rest unread.
        """
        meter = self.meter
        meter.wait_on(self.policy.read_leg)
        if self.fault is not None:
            raise self.fault
        try:
            chunk = await read()
            meter.wait_on(self.policy.write_leg)
            if isinstance(chunk, int):
                if chunk:
                    meter.count(chunk)
                return chunk
            if not chunk:
                self._end_source()
            elif self._filters:
                await self._judge(chunk)
            if self._async_filters:
                await self._flush_filters()
            if chunk:
                meter.count(len(chunk))
        except Fault as fault:
            self.fail(fault)
            raise
        return chunk

    async def pull_source(self) -> bytes:
        """Pull from the source itself, see `pull`."""
        return b"" if self.is_exhausted and self.fault is None else await self.pull(self._source.read)

    def watched(self, acknowledged: Progress = no_progress) -> Watched:
        """Watch for stalls while the block runs; `acknowledged` is the progress of the peer that is written to."""
        return Watched(self, acknowledged)

    def count_whole(self, size: int) -> None:
        """Count the whole body, which was passed on in one step."""
        if size:
            self.meter.count(size)
        self.is_exhausted = self._is_complete = True

    def fail(self, fault: Fault) -> None:
        """Record what broke the body, if nothing did before."""
        self.fault = self.fault or fault

    def mark_complete(self) -> None:
        """Record that the whole body was passed on: the transfer is complete, whatever happens next."""
        self._is_complete = True

    def end(self, outcome: Outcome) -> None:
        """End the transfer. Only the first call counts."""
        self.meter.end(outcome)
        # It is asked why a transfer ended, which is known now; it refers to this transfer.
        self._owner = None

    @property
    def outcome(self) -> Outcome | None:
        """How it ended, None while it is under way."""
        return self.meter.outcome

    @property
    def started(self) -> float:
        """When it began, on the clock of its exchange."""
        return self.meter.started

    @property
    def moved_bytes(self) -> int:
        """Bytes passed on so far."""
        return self.meter.moved_bytes

    @property
    def lane(self) -> str:
        """How most of the bytes are moved."""
        return self.meter.lane

    @property
    def is_whole(self) -> bool:
        """Whether every byte of the body was pulled."""
        return self.is_exhausted or self.meter.moved_bytes == self.length

    @property
    def remaining_bytes(self) -> int | None:
        """Bytes still to come; None where the length is not known."""
        return None if self.length is None else self.length - self.meter.moved_bytes

    @property
    def checks(self) -> TimerQueue | None:
        """The timers that check for stalls; None where nothing is limited."""
        seconds = self.policy.check_seconds
        return self._timers.of(seconds) if seconds < math.inf else None

    @property
    def turns(self) -> Turns:
        """The turns of all bodies."""
        return self._timers.turns

    @property
    def filters(self) -> Sequence[Filter]:
        """What must see the bytes."""
        return self._filters

    def start(self, lane: str = "copy") -> None:
        """Count the transfer as in flight, and start its clock. `end`, or leaving it as a block, is to follow."""
        self.meter.lane = lane
        self.meter.start()

    def __enter__(self) -> Self:
        """Start it."""
        self.meter.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End: complete if everything was pulled and nothing raised, as cut otherwise."""
        if self.outcome is None:
            self.end(self._find_outcome(exc))
        filters, self._filters, self._async_filters, self._owner = self._filters, (), (), None
        for each in filters:
            each.close()

    async def _judge(self, chunk: bytes) -> None:
        for each in self._filters:
            has_more = each.feed_data(chunk)
            while has_more:
                if self._async_filters:
                    await self._flush_filters()
                if not self.turns.has_time():
                    await self.turns.wait()
                has_more = each.feed_data(b"")
        if self.meter.moved_bytes + len(chunk) == self.length:
            self._finish_filters()

    async def _flush_filters(self) -> None:
        with self.meter.filtering():
            for each in self._async_filters:
                await each.flush()

    def _end_source(self) -> None:
        moved = self.meter.moved_bytes
        if self.length is not None and moved != self.length:
            is_upload = self.policy.direction is Direction.UPLOAD
            kind = FaultKind.CLIENT_LEFT if is_upload else FaultKind.RESPONSE_INCOMPLETE
            raise Fault(kind, f"The body ended after {moved} of {self.length} bytes.")
        if not self.length:
            self._finish_filters()
        self.is_exhausted = True

    def _finish_filters(self) -> None:
        for each in self._filters:
            each.finish()

    def _find_outcome(self, exc: BaseException | None) -> Outcome:
        """Return how it ended: its own failure first, then whether it was delivered, then what broke around it."""
        if self.fault is not None:
            return self.fault.outcome
        if self._is_complete or (exc is None and self.is_whole):
            return Outcome.COMPLETE
        if isinstance(exc, Fault):
            return exc.outcome
        if self._owner is not None and (exc is None or isinstance(exc, asyncio.CancelledError)):
            is_delivered = self.policy.direction is Direction.DOWNLOAD and self._owner.is_delivered
            return Outcome.COMPLETE if is_delivered else self._owner.why_cancelled().outcome
        return Outcome.BUG


async def pump(transfer: Transfer, lane: Lane[_Chunk], send_end: Callable[[], Awaitable[None]] | None = None) -> None:
    """Move every chunk from a lane's source to its sink, then await `send_end`, which passes the end on.

    Raises Fault for the source, a filter or a leg that stalls, and what `lane.write` and `send_end` raise.
    """
    turn = Turn(transfer.turns, transfer.meter.moved_bytes)
    with transfer.watched(lane.acknowledged):
        # A body of known length is not read any further after its last byte.
        while not transfer.is_whole:
            chunk = await transfer.pull(lane.read)
            if transfer.is_exhausted:
                break
            await lane.write(chunk)
            # Freed before the next one is received, which then has the same memory.
            del chunk
            if transfer.is_whole:
                break
            if not turn.has_time():
                await turn.wait(transfer.meter.moved_bytes)
        if send_end is not None:
            await send_end()


class Watched:
    """A block of a transfer that is watched for stalls. A class and not a generator, which would cost 2 us more."""

    __slots__ = ("_acknowledged", "_checks", "_detector", "_fault", "_task", "_transfer")

    def __init__(self, transfer: Transfer, acknowledged: Progress) -> None:
        self._transfer = transfer
        self._acknowledged = acknowledged
        self._checks = transfer.checks
        #: Made by the first check: most transfers end before it.
        self._detector: StallDetector | None = None
        #: The stall for which this watch cancelled the task; recorded on the transfer if nothing else did, too.
        self._fault: Fault | None = None

    def __enter__(self) -> None:
        """Watch the current task."""
        meter = self._transfer.meter
        meter.resume()
        if self._checks is not None:
            self._task = asyncio.current_task()
            self._checks.start(self, self._check)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop watching. Raises the Fault of a stall that cancelled the block."""
        self._transfer.meter.pause()
        if self._checks is not None:
            self._checks.stop(self)
        if self._fault is None or not isinstance(exc, asyncio.CancelledError) or self._task is None:
            return
        # A client that left meanwhile has cancelled the task too: then it stays cancelled, and did not stall.
        if self._task.uncancel() == 0:
            self._transfer.fail(self._fault)
            raise self._transfer.fault or self._fault from None

    def _check(self) -> None:
        meter = self._transfer.meter
        if self._detector is None:
            self._detector = StallDetector(meter, self._acknowledged)
        fault = self._detector.check(meter.clock())
        if fault is None:
            if self._checks is not None:
                self._checks.start(self, self._check)
            return
        if self._task is not None:
            self._fault = fault
            self._task.cancel()

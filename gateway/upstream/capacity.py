"""How many exchanges an upstream takes at once: slots, and a bounded queue for them.

There is one limiter per name of an upstream. A reload changes its limits; exchanges that hold a slot or wait for one
are counted on, whatever config they began with.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from types import TracebackType

from gateway.errors import Fault, FaultKind
from gateway.observe.stats import UpstreamStats


class _Waiter:
    """An exchange that waits for a slot."""

    __slots__ = ("since", "slot", "timeout")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        #: Loop time of its arrival.
        self.since = loop.time()
        #: Done once the slot is its own.
        self.slot: asyncio.Future[None] = loop.create_future()
        self.timeout = asyncio.timeout_at(None)


class CapacityLimiter:
    """Slots of one upstream, given in order of arrival and held until the last byte of both directions.

    `async with limiter` takes a slot and gives it back; any number of tasks may do so at once. Without `configure`
    there is no limit.
    """

    def __init__(self, stats: UpstreamStats) -> None:
        self._slots = math.inf
        self._max_queued = 0
        self._queue_seconds = math.inf
        self._stats = stats
        self._taken = 0
        self._waiters: deque[_Waiter] = deque()

    def configure(self, *, slots: float, max_queued: int, queue_seconds: float) -> None:
        """Change the limits, also while exchanges hold slots and wait.

        With more slots, those that wait longest get them. With fewer, none is taken away: the next is given once fewer
        are held. Exchanges that wait stay in a queue that is shorter now; their time counts from their arrival.
        """
        self._slots, self._max_queued, self._queue_seconds = slots, max_queued, queue_seconds
        self._stats.slots = slots
        self._admit()
        for waiter in self._waiters:
            if not waiter.slot.done():
                waiter.timeout.reschedule(self._deadline(waiter))

    @property
    def is_full(self) -> bool:
        """Whether taking a slot has to wait."""
        return self._taken >= self._slots or bool(self._waiters)

    async def __aenter__(self) -> None:
        """Take a slot. Raises Fault QUEUE_FULL or QUEUE_TIMEOUT (503); cancelling leaves the queue."""
        if self.is_full:
            await self._queue()
        else:
            self._taken += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the slot back."""
        self._release()

    async def _queue(self) -> None:
        if len(self._waiters) >= self._max_queued:
            upstream = self._stats.upstream
            raise Fault(
                FaultKind.QUEUE_FULL,
                f"Upstream {upstream!r} has {self._taken} exchanges in flight and {len(self._waiters)} waiting: "
                f"try again, or raise upstreams.{upstream}.max_in_flight or max_queued.",
                retry_after_seconds=1,
            )
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop)
        self._waiters.append(waiter)
        self._stats.queue_length = len(self._waiters)
        try:
            async with waiter.timeout:
                waiter.timeout.reschedule(self._deadline(waiter))
                await waiter.slot
        except TimeoutError:
            if waiter.slot.done() and not waiter.slot.cancelled():
                # The slot was given in the same iteration of the loop: keep it.
                return
            raise self._timed_out() from None
        except asyncio.CancelledError:
            if waiter.slot.done() and not waiter.slot.cancelled():
                # The slot was given in the same iteration of the loop: pass it on.
                self._release()
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            self._stats.queue_length = len(self._waiters)
            self._stats.queue_seconds.observe(loop.time() - waiter.since)

    def _deadline(self, waiter: _Waiter) -> float | None:
        return None if math.isinf(self._queue_seconds) else waiter.since + self._queue_seconds

    def _timed_out(self) -> Fault:
        upstream = self._stats.upstream
        return Fault(
            FaultKind.QUEUE_TIMEOUT,
            f"No slot of upstream {upstream!r} became free within {self._queue_seconds:g} s: "
            f"try again, or raise upstreams.{upstream}.max_in_flight or queue_timeout.",
            retry_after_seconds=max(1, round(min(self._queue_seconds, 60))),
        )

    def _release(self) -> None:
        """Free a slot, and give it to the next in the queue."""
        self._taken -= 1
        if self._waiters:
            self._admit()

    def _admit(self) -> None:
        """Give free slots to those that wait longest. Never awaits: a slot cannot be lost between."""
        while self._waiters and self._taken < self._slots:
            waiter = self._waiters.popleft()
            if not waiter.slot.done():
                self._taken += 1
                waiter.slot.set_result(None)

"""How many exchanges an upstream takes at once: slots, and a bounded queue for them.

There is one limiter per name of an upstream: a `CapacityLimiter`, or a `LeasedLimiter` where other workers use the
upstream as well. A reload changes its limits; exchanges that hold a slot or wait for one
are counted on, whatever config they began with.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from types import TracebackType
from typing import Protocol

from gateway.observe.stats import UpstreamStats
from gateway.upstream.waiting import Waiter, queue_full, queue_timeout


class Capacity(Protocol):
    """The slots of one upstream: `async with capacity` takes one, waits for it if need be, and gives it back."""

    @property
    def is_full(self) -> bool:
        """Whether taking a slot has to wait."""
        ...

    @property
    def taken(self) -> int:
        """Slots that exchanges of this process hold."""
        ...

    def configure(self, *, slots: float, max_queued: int, queue_seconds: float) -> None:
        """Change the limits, also while exchanges hold slots and wait."""
        ...

    def close(self) -> None:
        """Give up what is left; nothing uses the upstream any more."""
        ...

    def try_take(self) -> bool:
        """Take a slot if one is free; return whether there was one."""
        ...

    def give_back(self) -> None:
        """Give a slot back."""
        ...

    async def __aenter__(self) -> None:
        """Take a slot. Raises Fault QUEUE_FULL or QUEUE_TIMEOUT (503); cancelling leaves the queue."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the slot back."""
        ...


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
        #: Slots that exchanges hold.
        self.taken = 0
        self._waiters: deque[Waiter] = deque()

    def configure(self, *, slots: float, max_queued: int, queue_seconds: float) -> None:
        """Change the limits, also while exchanges hold slots and wait.

        With more slots, those that wait longest get them. With fewer, none is taken away: the next is given once fewer
        are held. Exchanges that wait stay in a queue that is shorter now; their time counts from their arrival.
        """
        self._slots, self._max_queued, self._queue_seconds = slots, max_queued, queue_seconds
        self._stats.slots = slots
        self._admit()
        for waiter in self._waiters:
            waiter.limit(queue_seconds)

    def close(self) -> None:
        """Nothing is left."""

    @property
    def is_full(self) -> bool:
        """Whether taking a slot has to wait."""
        return self.taken >= self._slots or bool(self._waiters)

    def try_take(self) -> bool:
        """Take a slot if one is free; return whether there was one."""
        if self.taken >= self._slots or self._waiters:
            return False
        self.taken += 1
        return True

    def give_back(self) -> None:
        """Free a slot, and give it to the next in the queue."""
        self.taken -= 1
        if self._waiters:
            self._admit()

    async def __aenter__(self) -> None:
        """Take a slot. Raises Fault QUEUE_FULL or QUEUE_TIMEOUT (503); cancelling leaves the queue."""
        if not self.try_take():
            await self._queue()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the slot back."""
        self.give_back()

    async def _queue(self) -> None:
        stats = self._stats
        if len(self._waiters) >= self._max_queued:
            raise queue_full(stats.upstream, self.taken, len(self._waiters))
        waiter = Waiter()
        self._waiters.append(waiter)
        stats.queue_length = len(self._waiters)
        try:
            await waiter.wait(self._queue_seconds)
        except TimeoutError:
            if not waiter.has_slot:
                raise queue_timeout(stats.upstream, self._queue_seconds) from None
        except asyncio.CancelledError:
            if waiter.has_slot:
                self.give_back()
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            stats.queue_length = len(self._waiters)
            stats.queue_seconds.observe(asyncio.get_running_loop().time() - waiter.since)

    def _admit(self) -> None:
        """Give free slots to those that wait longest. Never awaits: a slot cannot be lost between."""
        while self._waiters and self.taken < self._slots:
            if self._waiters.popleft().admit():
                self.taken += 1

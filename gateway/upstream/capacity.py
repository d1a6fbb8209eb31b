"""How many exchanges an upstream takes at once: slots, and a bounded queue for them."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from gateway.errors import Fault, FaultKind
from gateway.observe.stats import UpstreamStats


class CapacityLimiter:
    """Slots of one upstream, given in order of arrival and held until the last byte of both directions.

    `async with limiter` takes a slot and gives it back; any number of tasks may do so at once.
    """

    def __init__(self, *, slots: float, max_queued: int, queue_seconds: float, stats: UpstreamStats) -> None:
        self._slots = slots
        self._max_queued = max_queued
        self._queue_seconds = queue_seconds
        self._stats = stats
        self._taken = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        """Take a slot. Raises Fault QUEUE_FULL or QUEUE_TIMEOUT (503); cancelling leaves the queue."""
        if self._taken < self._slots and not self._waiters:
            self._taken += 1
        else:
            await self._queue()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the slot back."""
        self._release()

    async def _queue(self) -> None:
        upstream = self._stats.upstream
        if len(self._waiters) >= self._max_queued:
            raise Fault(
                FaultKind.QUEUE_FULL,
                f"Upstream {upstream!r} has {int(self._slots)} exchanges in flight and {self._max_queued} waiting: "
                f"try again, or raise upstreams.{upstream}.max_in_flight or max_queued.",
                retry_after_seconds=1,
            )
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._stats.queue_length = len(self._waiters)
        try:
            async with asyncio.timeout(self._queue_seconds):
                await waiter
        except TimeoutError:
            if waiter.done() and not waiter.cancelled():
                # The slot was given in the same iteration of the loop: keep it.
                return
            raise Fault(
                FaultKind.QUEUE_TIMEOUT,
                f"No slot of upstream {upstream!r} became free within {self._queue_seconds:g} s: "
                f"try again, or raise upstreams.{upstream}.max_in_flight or queue_timeout.",
                retry_after_seconds=max(1, round(min(self._queue_seconds, 60))),
            ) from None
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                # The slot was given in the same iteration of the loop: pass it on.
                self._release()
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            self._stats.queue_length = len(self._waiters)

    def _release(self) -> None:
        """Give the slot to the next in the queue, or free it. Never awaits: a slot cannot be lost between."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._taken -= 1

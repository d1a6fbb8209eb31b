"""Who may come in: slots of an upstream, a bounded queue before them; and the drain that lets the last one out."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from gateway.errors import Fault, FaultKind
from gateway.observe.stats import UpstreamStats


class CapacityLimiter:
    """Slots of one upstream, given in the order of asking and held until the last byte of both directions.

    Entering it takes a slot, leaving it gives one back: `async with gate`, by any number of tasks at once.
    """

    def __init__(self, *, slots: float, max_queued: int, queue_seconds: float, stats: UpstreamStats) -> None:
        self._slots = slots
        self._max_queued = max_queued
        self._queue_seconds = queue_seconds
        self._stats = stats
        self._taken = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        """Take a slot. Raises Fault QUEUE_FULL or QUEUE_TIMEOUT (503); cancelling the wait gives the place up."""
        if self._taken < self._slots and not self._waiters:
            self._taken += 1
        else:
            await self._queue()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the slot back."""
        self._leave()

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
            async with asyncio.timeout(None if self._queue_seconds == float("inf") else self._queue_seconds):
                await waiter
        except TimeoutError:
            if waiter.done() and not waiter.cancelled():
                # The slot was given in the same turn of the loop: it is ours.
                return
            raise Fault(
                FaultKind.QUEUE_TIMEOUT,
                f"No slot of upstream {upstream!r} became free within {self._queue_seconds:g} s: "
                f"try again, or raise upstreams.{upstream}.max_in_flight or queue_timeout.",
                retry_after_seconds=max(1, round(min(self._queue_seconds, 60))),
            ) from None
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                # The slot was given in the same turn of the loop: hand it on.
                self._leave()
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            self._stats.queue_length = len(self._waiters)

    def _leave(self) -> None:
        """Hand the slot to the next in line, or set it free. Never awaits: a slot cannot be lost between."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._taken -= 1


class InFlightCounter:
    """Counts exchanges, and after `begin` lets them out but nobody in."""

    def __init__(self) -> None:
        self.is_draining = False
        self.in_flight = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def __enter__(self) -> None:
        """Count an exchange, until the block is left."""
        self.in_flight += 1
        self._empty.clear()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let an exchange go."""
        self.in_flight -= 1
        if not self.in_flight:
            self._empty.set()

    def begin(self) -> None:
        """Refuse further exchanges; those in flight go on, and close their connections."""
        self.is_draining = True

    async def wait_empty(self) -> None:
        """Wait until no exchange is in flight."""
        await self._empty.wait()

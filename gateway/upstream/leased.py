"""The slots of an upstream that several workers share: leased from the supervisor, see `gateway.sharing`.

Without `max_in_flight` there is nothing to share and no message. With it, an exchange uses a lease that this worker
holds, or asks the supervisor for one: the queue is there, in order of arrival over all workers.
"""

from __future__ import annotations

import asyncio
import math
from types import TracebackType

from gateway.observe.stats import UpstreamStats
from gateway.sharing import Grant, Keep, Leases, Refuse, SharedLimits, ToWorker
from gateway.upstream.waiting import Waiter, queue_full, queue_timeout


class LeasedLimiter:
    """A Capacity of one worker. Without `configure` there is no limit."""

    def __init__(self, stats: UpstreamStats, limits: SharedLimits) -> None:
        self._stats = stats
        self._limits = limits
        self._limit = f"upstreams.{stats.upstream}.max_in_flight"
        self._leases = Leases[Waiter](self._limit, limits.post)
        #: Requests that may wait: more are refused without asking.
        self._max_waiting = 0.0
        self._queue_seconds = math.inf

    def configure(self, *, slots: float, max_queued: int, queue_seconds: float) -> None:
        """Apply the limits, also while exchanges hold slots and wait. The supervisor has the numbers of its own."""
        self._max_waiting, self._queue_seconds = slots + max_queued, queue_seconds
        leases = self._leases
        if math.isfinite(slots) and not leases.is_limited:
            self._limits.subscribe(self._limit, self._receive)
            leases.begin()
        elif math.isinf(slots) and leases.is_limited:
            self._limits.unsubscribe(self._limit)
            for waiter in leases.end():
                if not waiter.admit():
                    leases.release()
        for waiter in leases.waiting.values():
            waiter.limit(queue_seconds)

    def close(self) -> None:
        """Give up what is left; nothing uses the upstream any more."""
        if self._leases.is_limited:
            self._limits.unsubscribe(self._limit)
            self._leases.end()

    @property
    def is_full(self) -> bool:
        """Whether taking a slot has to wait, if only for the supervisor."""
        leases = self._leases
        return leases.used >= leases.held or bool(leases.waiting)

    @property
    def taken(self) -> int:
        """Slots that exchanges of this worker hold."""
        return self._leases.used

    def try_take(self) -> bool:
        """Take a slot if a lease is at hand; return whether there was one."""
        return self._leases.take()

    def give_back(self) -> None:
        """Give a slot back."""
        if (waiter := self._leases.release()) is not None:
            self._admit(waiter)

    async def __aenter__(self) -> None:
        """Take a slot. Raises Fault QUEUE_FULL or QUEUE_TIMEOUT (503); cancelling leaves the queue."""
        if not self._leases.take():
            await self._queue()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the slot back."""
        self.give_back()

    async def _queue(self) -> None:
        leases, stats = self._leases, self._stats
        if len(leases.waiting) >= self._max_waiting:
            raise queue_full(stats.upstream, leases.used, len(leases.waiting))
        waiter = Waiter()
        number = leases.wait(waiter)
        try:
            await waiter.wait(self._queue_seconds)
        except TimeoutError:
            if not waiter.has_slot:
                raise queue_timeout(stats.upstream, self._queue_seconds) from None
        except asyncio.CancelledError:
            if waiter.has_slot:
                self._admit(leases.release())
            raise
        finally:
            # Nothing if it was granted or refused.
            leases.withdraw(number)
            stats.queue_seconds.observe(asyncio.get_running_loop().time() - waiter.since)

    def _receive(self, message: ToWorker | None) -> None:
        """Take in a message of the supervisor; None means that it has ended."""
        match message:
            case Grant(_, number):
                self._admit(self._leases.grant(number))
            case Refuse(_, number, in_flight, waiting):
                if (waiter := self._leases.refuse(number)) is not None:
                    waiter.refuse(queue_full(self._stats.upstream, in_flight, waiting))
            case Keep(_, count):
                self._leases.keep(count)
            case None:
                while (waiter := self._leases.lose_supervisor()) is not None:
                    self._admit(waiter)

    def _admit(self, waiter: Waiter | None) -> None:
        """Give a slot to what has waited for it, or back if that does not wait any more."""
        while waiter is not None and not waiter.admit():
            waiter = self._leases.release()

"""An exchange that waits for a slot of an upstream, and why it gets none."""

from __future__ import annotations

import asyncio
import math

from gateway.errors import Fault, FaultKind


class Waiter:
    """An exchange that waits for a slot, from its arrival on."""

    __slots__ = ("_slot", "_timeout", "since")

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        #: Loop time of its arrival.
        self.since = loop.time()
        #: Done once the slot is its own.
        self._slot: asyncio.Future[None] = loop.create_future()
        self._timeout = asyncio.timeout_at(None)

    @property
    def has_slot(self) -> bool:
        """Whether the slot is its own: perhaps also after a wait that was cancelled or timed out, in one iteration."""
        return self._slot.done() and not self._slot.cancelled() and self._slot.exception() is None

    async def wait(self, queue_seconds: float) -> None:
        """Wait for the slot. Raises TimeoutError this long after the arrival, and what `refuse` was called with."""
        async with self._timeout:
            self.limit(queue_seconds)
            await self._slot

    def limit(self, queue_seconds: float) -> None:
        """Change the limit of a wait under way; it counts from the arrival."""
        if not self._slot.done():
            self._timeout.reschedule(None if math.isinf(queue_seconds) else self.since + queue_seconds)

    def admit(self) -> bool:
        """Give it a slot; return False if it does not wait any more."""
        if self._slot.done():
            return False
        self._slot.set_result(None)
        return True

    def refuse(self, fault: Fault) -> None:
        """End the wait with a fault."""
        if not self._slot.done():
            self._slot.set_exception(fault)


def queue_full(upstream: str, in_flight: int, waiting: int) -> Fault:
    """Return the fault of an exchange that finds no place in the queue."""
    return Fault(
        FaultKind.QUEUE_FULL,
        f"Upstream {upstream!r} has {in_flight} exchanges in flight and {waiting} waiting: "
        f"try again, or raise upstreams.{upstream}.max_in_flight or max_queued.",
        retry_after_seconds=1,
    )


def queue_timeout(upstream: str, queue_seconds: float) -> Fault:
    """Return the fault of an exchange that has waited too long."""
    return Fault(
        FaultKind.QUEUE_TIMEOUT,
        f"No slot of upstream {upstream!r} became free within {queue_seconds:g} s: "
        f"try again, or raise upstreams.{upstream}.max_in_flight or queue_timeout.",
        retry_after_seconds=max(1, round(min(queue_seconds, 60))),
    )

"""How slow a side may be, and the watch that notices: silence and trickling are timed, size is not.

A watch looks at a transfer a few times per limit and costs nothing per chunk. What it finds cancels the task that
waits, and comes out of the transfer as the fault of the side that was being waited for.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from gateway.errors import Fault, FaultKind
from gateway.observe.stats import Direction, Leg
from gateway.transfer.timers import Timers


@dataclass(frozen=True, slots=True)
class LegLimits:
    """How slow one side may be: seconds of silence, and bytes per second over `grace_seconds`."""

    idle_seconds: float = math.inf
    min_rate: float = 0.0
    grace_seconds: float = math.inf


@dataclass(frozen=True)
class TransferPolicy:
    """What is fixed about a transfer before its first byte. One is made for many transfers."""

    direction: Direction
    #: The side chunks are read from and the side they are written to.
    read_leg: Leg
    write_leg: Leg
    read_limits: LegLimits = LegLimits()
    write_limits: LegLimits = LegLimits()
    total_seconds: float = math.inf

    @functools.cached_property
    def check_seconds(self) -> float:
        """How long a watch waits between two looks; infinite where nothing is limited."""
        paces = (self.read_limits, self.write_limits)
        shortest = min(self.total_seconds, *(p.idle_seconds for p in paces), *(p.grace_seconds for p in paces))
        return max(shortest / _LOOKS, _MIN_LOOK_SECONDS)

    @functools.cached_property
    def grace_seconds(self) -> float:
        """How long bytes are counted before they are held to a rate."""
        return min(self.read_limits.grace_seconds, self.write_limits.grace_seconds)


#: How often a watch looks, in times per shortest limit.
_LOOKS: Final = 4
_MIN_LOOK_SECONDS: Final = 0.02
#: Fault for (silent, too slow) by side.
_STALLED: Final[dict[Leg, tuple[FaultKind, FaultKind, str]]] = {
    Leg.DOWNSTREAM_READ: (FaultKind.CLIENT_IDLE, FaultKind.CLIENT_TOO_SLOW, "The client sent"),
    Leg.DOWNSTREAM_WRITE: (FaultKind.CLIENT_IDLE, FaultKind.CLIENT_TOO_SLOW, "The client took"),
    Leg.UPSTREAM_READ: (FaultKind.UPSTREAM_IDLE, FaultKind.UPSTREAM_IDLE, "The upstream sent"),
    Leg.UPSTREAM_WRITE: (FaultKind.UPSTREAM_STUCK, FaultKind.UPSTREAM_STUCK, "The upstream took"),
    Leg.DISK_WRITE: (FaultKind.DISK_SLOW, FaultKind.DISK_SLOW, "The disk took"),
    Leg.DISK_READ: (FaultKind.DISK_SLOW, FaultKind.DISK_SLOW, "The disk gave"),
}


class Watched(Protocol):
    """What a watch looks at."""

    #: Bytes handed to the sink, and seconds waited for each side.
    moved_bytes: int
    read_seconds: float
    write_seconds: float

    #: When the transfer began, on the monotonic clock: it may be watched in several stretches.
    started: float

    @property
    def waiting_on(self) -> Leg:
        """The side being waited for now."""
        ...

    @property
    def waiting_since(self) -> float:
        """When that wait began, on the monotonic clock."""
        ...


class Watch:
    """Looks at a transfer a few times per limit; costs nothing per chunk."""

    def __init__(
        self, transfer: Watched, policy: TransferPolicy, pending: Callable[[], int], timers: Timers, now: float
    ) -> None:
        self.fault: Fault | None = None
        self._transfer = transfer
        self._course = policy
        self._pending = pending
        self._task = asyncio.current_task()
        self._progress_at = self._window_began = now
        self._last_pending = 0
        self._window_read, self._window_write = transfer.read_seconds, transfer.write_seconds
        self._window_bytes = transfer.moved_bytes
        self._looks = timers.of(policy.check_seconds) if policy.check_seconds < math.inf else None
        if self._looks is not None:
            self._looks.start(self, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._looks is not None:
            self._looks.stop(self)

    def _look(self) -> None:
        now = time.monotonic()
        self.fault = self._find_stall(now)
        if self.fault is None:
            if self._looks is not None:
                self._looks.start(self, self._look)
        elif self._task is not None:
            self._task.cancel()

    def _find_stall(self, now: float) -> Fault | None:
        transfer, policy = self._transfer, self._course
        side = transfer.waiting_on
        is_writing = side is policy.write_leg
        pending = self._pending() if is_writing else 0
        if pending != self._last_pending:
            # A big chunk may leave slowly: bytes that drain are progress too.
            self._last_pending = pending
            self._progress_at = now
        silent_seconds = now - max(transfer.waiting_since, self._progress_at)
        limits = policy.write_limits if is_writing else policy.read_limits
        moved = transfer.moved_bytes - pending
        # Filters have bounds of their own, and nobody else is to be blamed for them.
        if silent_seconds >= limits.idle_seconds and side is not Leg.FILTER:
            return _stall(side, 0, f"nothing for {limits.idle_seconds:g} s after {moved} bytes")
        if now - transfer.started >= policy.total_seconds:
            return _stall(side, 1, f"{moved} bytes within the {policy.total_seconds:g} s a transfer may take")
        if now - self._window_began >= policy.grace_seconds:
            return self._find_slowness(now, moved)
        return None

    def _find_slowness(self, now: float, moved: int) -> Fault | None:
        """Compare the bytes of the last window with the seconds each side was waited for in it."""
        transfer, policy = self._transfer, self._course
        waiting = now - transfer.waiting_since
        reading = waiting if transfer.waiting_on is policy.read_leg else 0.0
        writing = waiting if transfer.waiting_on is policy.write_leg else 0.0
        seconds = {
            policy.read_leg: transfer.read_seconds - self._window_read + reading,
            policy.write_leg: transfer.write_seconds - self._window_write + writing,
        }
        fresh = moved - self._window_bytes
        window = now - self._window_began
        for side, limits in ((policy.read_leg, policy.read_limits), (policy.write_leg, policy.write_limits)):
            if seconds[side] > window / 2 and fresh < limits.min_rate * seconds[side]:
                return _stall(
                    side,
                    1,
                    f"{fresh} bytes in {window:.3g} s and at least {limits.min_rate:g} bytes/s are asked for",
                )
        self._window_began, self._window_bytes = now, moved
        self._window_read = transfer.read_seconds + reading
        self._window_write = transfer.write_seconds + writing
        return None


def _stall(side: Leg, index: int, what: str) -> Fault:
    row = _STALLED[side]
    kind = row[1] if index else row[0]
    return Fault(kind, f"{row[2]} {what}: check the line and the peer, or raise the route's timeouts.")

"""Finds a leg that is too slow: silent for too long, or below its rate. Size is never limited here.

A detector looks at a transfer's meter a few times per limit and costs nothing per chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.errors import Fault, FaultKind
from gateway.observe.stats import Leg
from gateway.transfer.meter import Meter

#: By leg: the fault of a silent one, of a slow one, and the beginning of their detail.
_FAULTS: Final[dict[Leg, tuple[FaultKind, FaultKind, str]]] = {
    Leg.DOWNSTREAM_READ: (FaultKind.CLIENT_IDLE, FaultKind.CLIENT_TOO_SLOW, "The client sent"),
    Leg.DOWNSTREAM_WRITE: (FaultKind.CLIENT_IDLE, FaultKind.CLIENT_TOO_SLOW, "The client took"),
    Leg.UPSTREAM_READ: (FaultKind.UPSTREAM_IDLE, FaultKind.UPSTREAM_IDLE, "The upstream sent"),
    Leg.UPSTREAM_WRITE: (FaultKind.UPSTREAM_STUCK, FaultKind.UPSTREAM_STUCK, "The upstream took"),
    Leg.DISK_WRITE: (FaultKind.DISK_SLOW, FaultKind.DISK_SLOW, "The disk took"),
    Leg.DISK_READ: (FaultKind.DISK_SLOW, FaultKind.DISK_SLOW, "The disk gave"),
}


class StallDetector:
    """Checks one transfer. `pending` returns the bytes that were written but have not left this process."""

    def __init__(self, meter: Meter, pending: Callable[[], int]) -> None:
        self._meter = meter
        self._policy = meter.policy
        self._pending = pending
        self._last_pending = 0
        self._progress_at = self._window_started = meter.waiting_since
        self._window_bytes = meter.moved_bytes
        self._window_seconds = dict(meter.leg_seconds)

    def check(self, now: float) -> Fault | None:
        """Return the fault of the leg that stalls, None if none does. `now` is a time of the meter's clock."""
        meter, policy = self._meter, self._policy
        leg = meter.waiting_on
        is_writing = leg is policy.write_leg
        pending = self._pending() if is_writing else 0
        if pending != self._last_pending:
            # A large chunk may leave slowly: bytes that drain are progress too.
            self._last_pending = pending
            self._progress_at = now
        silent_seconds = now - max(meter.waiting_since, self._progress_at)
        limits = policy.write_limits if is_writing else policy.read_limits
        moved = meter.moved_bytes - pending
        # Filters have limits of their own, and neither peer is to blame for them.
        if silent_seconds >= limits.idle_seconds and leg is not Leg.FILTER:
            return _silent(leg, f"nothing for {limits.idle_seconds:g} s after {moved} bytes")
        if now - meter.started >= policy.total_seconds:
            leg = policy.read_leg if leg is Leg.FILTER else leg
            return _slow(leg, f"{moved} bytes within the {policy.total_seconds:g} s a transfer may take")
        if now - self._window_started >= policy.grace_seconds:
            return self._check_rate(now, moved)
        return None

    def _check_rate(self, now: float, moved: int) -> Fault | None:
        """Compare the bytes of the last window with the seconds each leg was waited on in it."""
        meter, policy = self._meter, self._policy
        seconds = dict(meter.leg_seconds)
        seconds[meter.waiting_on] += now - meter.waiting_since
        window_seconds = now - self._window_started
        window_bytes = moved - self._window_bytes
        for leg, limits in ((policy.read_leg, policy.read_limits), (policy.write_leg, policy.write_limits)):
            waited = seconds[leg] - self._window_seconds[leg]
            if waited > window_seconds / 2 and window_bytes < limits.min_rate * waited:
                return _slow(
                    leg, f"{window_bytes} bytes in {window_seconds:.3g} s, less than {limits.min_rate:g} bytes/s"
                )
        self._window_started, self._window_bytes, self._window_seconds = now, moved, seconds
        return None


def _silent(leg: Leg, what: str) -> Fault:
    kind, _, subject = _FAULTS[leg]
    return Fault(kind, f"{subject} {what}: check the line and the peer, or raise the route's timeouts.")


def _slow(leg: Leg, what: str) -> Fault:
    _, kind, subject = _FAULTS[leg]
    return Fault(kind, f"{subject} {what}: check the line and the peer, or raise the route's timeouts.")

"""Finds a leg that is too slow: silent for too long, or trickling. Size is never limited here.

A detector looks at a transfer's meter, and at what the peer's kernel has acknowledged, a few times per limit; it costs
nothing per chunk. Its two limits never overlap:

- `idle` is about silence: no byte for that long.
- `min_rate` is about trickling. A window starts at a byte and lasts `grace`; its rate is its bytes over the time the
  leg was waited on, from its first to its last byte, judged only if that is at least half of `grace`. A pause ends the
  window, so silence never counts as a low rate.

What a check cannot see between two looks is decided for the transfer: one at its rate or above is never cut, one at
less than 7/8 of it within twice `grace`. A wait of up to a quarter of `grace` is part of a trickle, a wait of half of
it or longer is a pause.
"""

from __future__ import annotations

from typing import Final

from gateway.errors import Fault, FaultKind
from gateway.observe.stats import Leg
from gateway.transfer.meter import Meter
from gateway.transfer.policy import LegLimits
from gateway.transfer.progress import Progress

#: A window is judged if its first and last byte are this far apart, as a part of `grace`.
_JUDGED_PART: Final = 1 / 2
#: Checks this far apart without a byte between them make a pause, as a part of `grace`: three checks.
_PAUSE_PART: Final = 3 / 8
#: By leg: the fault of a silent one, of a slow one, the beginning of their detail, and what to look at.
_FAULTS: Final[dict[Leg, tuple[FaultKind, FaultKind, str, str]]] = {
    Leg.DOWNSTREAM_READ: (
        FaultKind.CLIENT_IDLE,
        FaultKind.CLIENT_TOO_SLOW,
        "The client sent",
        "check the client and the line to it",
    ),
    Leg.DOWNSTREAM_WRITE: (
        FaultKind.CLIENT_IDLE,
        FaultKind.CLIENT_TOO_SLOW,
        "The client took",
        "check the client and the line to it",
    ),
    Leg.UPSTREAM_READ: (
        FaultKind.UPSTREAM_IDLE,
        FaultKind.UPSTREAM_IDLE,
        "The upstream sent",
        "see why the upstream is slow",
    ),
    Leg.UPSTREAM_WRITE: (
        FaultKind.UPSTREAM_STUCK,
        FaultKind.UPSTREAM_STUCK,
        "The upstream took",
        "see why the upstream does not read",
    ),
    Leg.DISK_WRITE: (FaultKind.DISK_SLOW, FaultKind.DISK_SLOW, "The disk took", "check the disk"),
    Leg.DISK_READ: (FaultKind.DISK_SLOW, FaultKind.DISK_SLOW, "The disk gave", "check the disk"),
}


class StallDetector:
    """Checks one transfer. `acknowledged` is the progress of the peer that is written to."""

    def __init__(self, meter: Meter, acknowledged: Progress) -> None:
        self._meter = meter
        self._policy = meter.policy
        self._acknowledged = acknowledged
        #: At the last check; None before the first.
        self._last_acknowledged: int | None = None
        self._written_at = meter.waiting_since
        self._reading = _RateWindow(self._policy.read_limits)
        self._writing = _RateWindow(self._policy.write_limits)

    def check(self, now: float) -> Fault | None:
        """Return the fault of the leg that stalls, None if none does. `now` is a time of the meter's clock."""
        meter, policy = self._meter, self._policy
        leg = meter.waiting_on
        is_writing = leg is policy.write_leg
        acknowledged = self._acknowledged()
        if self._last_acknowledged is None or acknowledged > self._last_acknowledged:
            self._written_at = now
        self._last_acknowledged = acknowledged
        moved_at = max(meter.waiting_since, self._written_at) if is_writing else meter.waiting_since
        limits = policy.write_limits if is_writing else policy.read_limits
        # Filters have limits of their own, and neither peer is to blame for them.
        if now - moved_at >= limits.idle_seconds and leg is not Leg.FILTER:
            return self._silent(leg, limits)
        if now - meter.started >= policy.total_seconds:
            return self._over_total(policy.read_leg if leg is Leg.FILTER else leg)
        return self._check_rate(policy.read_leg, self._reading, meter.moved_bytes, now) or self._check_rate(
            policy.write_leg, self._writing, acknowledged, now
        )

    def _check_rate(self, leg: Leg, window: _RateWindow, progress: int, now: float) -> Fault | None:
        if not window.is_slow(now, progress, self._meter.seconds_on(leg, now)):
            return None
        limits, key, direction = window.limits, self._policy.timeouts_key, self._policy.direction
        _, kind, subject, cure = _FAULTS[leg]
        return Fault(
            kind,
            f"{subject} {window.moved_bytes} bytes of the {direction} in {window.seconds:.3g} s, less than "
            f"{limits.min_rate:g} bytes/s: {cure}, lower {key}.min_rate ({limits.min_rate:g} bytes/s) or raise "
            f"{key}.grace ({limits.grace_seconds:g} s).",
        )

    def _silent(self, leg: Leg, limits: LegLimits) -> Fault:
        kind, _, subject, cure = _FAULTS[leg]
        seconds = f"{limits.idle_seconds:g} s"
        where = f"{limits.idle_key} ({seconds})"
        return Fault(kind, f"{subject} nothing of {self._what} for {seconds}: {cure}, or raise {where}.")

    def _over_total(self, leg: Leg) -> Fault:
        _, kind, subject, cure = _FAULTS[leg]
        seconds = f"{self._policy.total_seconds:g} s"
        where = f"{self._policy.timeouts_key}.total ({seconds})"
        return Fault(kind, f"{subject} not all of {self._what} within {seconds}: {cure}, or raise {where}.")

    @property
    def _what(self) -> str:
        """The body and how far it came, for messages."""
        return f"the {self._policy.direction} ({self._meter.moved_bytes} bytes so far)"


class _RateWindow:
    """The bytes of one leg in a window, and the seconds it was waited on between the first and the last of them."""

    __slots__ = ("_begun", "_checked", "_moved", "_progress", "limits", "moved_bytes", "seconds")

    def __init__(self, limits: LegLimits) -> None:
        self.limits = limits
        self.moved_bytes = 0
        self.seconds = 0.0
        self._progress: int | None = None
        #: Time, progress and seconds waited when the window began; None until a byte begins one.
        self._begun: tuple[float, int, float] | None = None
        #: Seconds waited at the last check, and at the last that saw a byte.
        self._checked = self._moved = 0.0

    def is_slow(self, now: float, progress: int, waited: float) -> bool:
        """Look at a leg's progress; return whether a window is over that was too slow."""
        if not self.limits.has_rate:
            return False
        has_moved = self._progress is not None and progress > self._progress
        grace, begun = self.limits.grace_seconds, self._begun
        is_paused = waited - self._moved >= grace * _PAUSE_PART
        if has_moved and begun is not None and not is_paused:
            self.moved_bytes = progress - begun[1]
            # The last byte came after the last check: never count more time than there was.
            self.seconds = self._checked - begun[2]
        is_over = begun is not None and (is_paused or now - begun[0] >= grace)
        is_slow = (
            is_over and self.seconds >= grace * _JUDGED_PART and self.moved_bytes < self.limits.min_rate * self.seconds
        )
        if is_over:
            self._begun = None
        if has_moved:
            self._moved = waited
            if self._begun is None:
                self._begun = (now, progress, waited)
                if not is_slow:
                    self.moved_bytes, self.seconds = 0, 0.0
        self._progress, self._checked = progress, waited
        return is_slow

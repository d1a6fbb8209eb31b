"""The limits of a transfer: its direction, its two legs, and how slow each may be."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final

from gateway.observe.stats import Direction, Leg

#: Checks for a stall per shortest limit, and per window in which a rate is measured.
_CHECKS_PER_LIMIT: Final = 4
_CHECKS_PER_WINDOW: Final = 8
_MIN_CHECK_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class LegLimits:
    """How slow one leg may be: seconds without a byte, and bytes per second over `grace_seconds`."""

    idle_seconds: float = math.inf
    #: The config key of `idle_seconds`.
    idle_key: str = ""
    min_rate: float = 0.0
    grace_seconds: float = math.inf

    @property
    def has_rate(self) -> bool:
        """Whether there is a lowest rate."""
        return self.min_rate > 0 and self.grace_seconds < math.inf


@dataclass(frozen=True)
class TransferPolicy:
    """What is fixed about a transfer before its first byte: one for all transfers of a route and direction."""

    direction: Direction
    #: The leg chunks are read from and the leg they are written to.
    read_leg: Leg
    write_leg: Leg
    read_limits: LegLimits = LegLimits()
    write_limits: LegLimits = LegLimits()
    total_seconds: float = math.inf
    #: The config key of the section with `min_rate`, `grace` and `total`.
    timeouts_key: str = ""
    #: The label `upstream` of the bytes.
    upstream: str = ""

    @functools.cached_property
    def check_seconds(self) -> float:
        """Seconds between two checks for a stall; infinite where nothing is limited."""
        limits = (self.read_limits, self.write_limits)
        shortest = min(self.total_seconds, *(each.idle_seconds for each in limits))
        windows = (each.grace_seconds for each in limits if each.has_rate)
        seconds = min(shortest / _CHECKS_PER_LIMIT, *(window / _CHECKS_PER_WINDOW for window in windows), math.inf)
        return max(seconds, _MIN_CHECK_SECONDS)

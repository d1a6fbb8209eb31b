"""How busy the machine was with other work during a measurement.

Beside other processes a small request takes up to twice the CPU time, because the proxy is interrupted and its caches
are used by others; the ratio to a proxy in C, which needs less of the caches, is larger as well.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

#: /proc/stat, proc(5): user, nice, system; irq, softirq, steal.
_BUSY_FIELDS = (0, 1, 2, 5, 6, 7)


@dataclass(frozen=True)
class Usage:
    """CPU seconds so far: of the machine, and of this process with all it started that have ended."""

    at: float
    busy: float
    own: float

    @staticmethod
    def now() -> Usage:
        """Return what was used until now."""
        return Usage(time.monotonic(), _busy_seconds(), _own_seconds())


def other_share(before: Usage, after: Usage, cores: int) -> float:
    """Return the share of the machine that other processes took."""
    others = (after.busy - before.busy) - (after.own - before.own)
    seconds = (after.at - before.at) * cores
    return min(max(others / seconds, 0.0), 1.0) if seconds else 0.0


def describe_others(before: Usage) -> str:
    """Return what other processes took since then, in words. All that were started must have been waited for."""
    share = other_share(before, Usage.now(), os.cpu_count() or 1)
    return f"other processes took {100 * share:.0f} % of the machine"


def _busy_seconds() -> float:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(int(fields[index]) for index in _BUSY_FIELDS) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Return the CPU time of this process and of all it started that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)

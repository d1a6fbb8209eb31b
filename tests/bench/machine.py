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
_STEAL_FIELD = 7


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


class StolenTime:
    """What the host of a virtual machine took from its cores, from when this was made until it is shown.

    While the host runs something else a core stands still, and whatever was to run on it is late.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._before = _stolen_seconds()

    def __str__(self) -> str:
        seconds = time.monotonic() - self._began
        shares = [
            f"{max(0.0, after - before) / seconds:.1%}" if seconds else "-"
            for before, after in zip(self._before, _stolen_seconds(), strict=True)
        ]
        return f"The host took {', '.join(shares)} of the time of the cores."


def _stolen_seconds() -> list[float]:
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    cores = [fields for name, *fields in lines if name.startswith("cpu") and name != "cpu"]
    return [int(fields[_STEAL_FIELD]) / os.sysconf("SC_CLK_TCK") for fields in cores]


def _busy_seconds() -> float:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(int(fields[index]) for index in _BUSY_FIELDS) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Return the CPU time of this process and of all it started that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)

"""How many cores this process may use: the number of workers of `workers: auto`."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

from gateway.config import Config
from gateway.config.values import AUTO_WORKERS

_CGROUP: Final = Path("/sys/fs/cgroup")
_PROC: Final = Path("/proc/self/cgroup")


def count_workers(config: Config) -> int:
    """Return how many workers a config asks for; `auto` is one for each core."""
    return count_cores() if config.workers == AUTO_WORKERS else config.workers


def count_cores(cgroup: Path | None = None) -> int:
    """Return how many cores this process may use: those it may run on, within the CPU limit of its container."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, math.floor(min(count, _read_limit(cgroup or _CGROUP))))


def _read_limit(cgroup: Path) -> float:
    """Return the cores that the control group allows, as its version 2 or 1 has it; infinity without a limit."""
    # A container sees its own group as the root; a unit of systemd has its path in /proc.
    quota, _, period = (
        _read(cgroup / _own_group() / "cpu.max")
        or _read(cgroup / "cpu.max")
        or f"{_read(cgroup / 'cpu/cpu.cfs_quota_us')} {_read(cgroup / 'cpu/cpu.cfs_period_us')}"
    ).partition(" ")
    # Without a limit the quota is `max` in version 2, -1 in version 1.
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else math.inf


def _own_group() -> str:
    """Return the path of this process's control group, of version 2, below the root of all."""
    lines = _read(_PROC).splitlines()
    return next((line.removeprefix("0::").lstrip("/") for line in lines if line.startswith("0::")), "")


def _read(path: Path) -> str:
    """Return the text of a file, "" if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""

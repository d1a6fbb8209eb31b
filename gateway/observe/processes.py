"""What the processes of a gateway use, as the `process_*` metrics of one; read from /proc by prometheus_client.

process_cpu_seconds_total       sum, also of workers that have ended
process_resident_memory_bytes   sum; memory that several share counts once (PSS), as in the limit of a container.
                                How much a process shares is measured of those that are new, and of one more each time:
                                the kernel looks at all pages for it, which takes most of a millisecond
process_virtual_memory_bytes    sum
process_open_fds, _max_fds      of the process that is nearest to its limit: a sum would hide that one is there
process_start_time_seconds      of the first
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import add
from pathlib import Path
from typing import Final

from prometheus_client import ProcessCollector, metrics_core

from gateway.observe.exposition import Kind, Metric, Row

#: Of /proc/PID/stat, after the name: CPU time of children that have ended, see proc(5).
_CHILDREN: Final = slice(13, 15)
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PSS: Final = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)
_COMBINE: Final[Mapping[str, Callable[[float, float], float]]] = {
    "process_cpu_seconds": add,
    "process_virtual_memory_bytes": add,
    "process_start_time_seconds": min,
}


class ProcessGroup:
    """Reads what processes use: by default this one. Used by one thread at a time."""

    def __init__(self) -> None:
        self._pid = "self"
        self._collector = ProcessCollector(registry=None, pid=lambda: self._pid)
        self._cpu_seconds = 0.0
        #: Of the resident bytes of each process those that count for others; that measured longest ago is the first.
        self._shared_bytes: dict[int, float] = {}

    def read(self) -> Iterator[Row]:
        """Yield the metrics of this process."""
        self._pid = "self"
        for metric in self._collector.collect():
            yield _row(metric, metric.samples[0].value)

    def read_all(self, pids: Sequence[int], parent: int) -> Iterator[Row]:
        """Yield the metrics of these processes, and of the children of `parent` that have ended."""
        metrics: dict[str, metrics_core.Metric] = {}
        values: dict[str, float] = {}
        resident: dict[int, float] = {}
        fullest = (0.0, 0.0, 0.0)
        for pid in pids:
            self._pid = str(pid)
            own = {metric.name: metric for metric in self._collector.collect()}
            numbers = {name: metric.samples[0].value for name, metric in own.items()}
            if not {"process_open_fds", "process_max_fds"} <= numbers.keys():
                # It has ended.
                continue
            metrics = own
            resident[pid] = numbers["process_resident_memory_bytes"]
            for name, combine in _COMBINE.items():
                values[name] = combine(values[name], numbers[name]) if name in values else numbers[name]
            open_count, max_count = numbers["process_open_fds"], numbers["process_max_fds"]
            fullest = max(fullest, (open_count / max_count, open_count, max_count))
        values |= {"process_open_fds": fullest[1], "process_max_fds": fullest[2]}
        self._measure_shared(resident)
        values["process_resident_memory_bytes"] = sum(resident.values()) - sum(self._shared_bytes.values())
        # One that ends meanwhile is missing, or counted twice.
        self._cpu_seconds = max(self._cpu_seconds, values.get("process_cpu_seconds", 0.0) + _children_seconds(parent))
        values["process_cpu_seconds"] = self._cpu_seconds
        for name, metric in metrics.items():
            yield _row(metric, values[name])

    def _measure_shared(self, resident: Mapping[int, float]) -> None:
        """Measure what is shared, given the resident bytes of each process.

        All are measured anew where one has begun or ended, which changes the share of the others.
        """
        known = dict(self._shared_bytes) if self._shared_bytes.keys() == resident.keys() else {}
        for pid in [*list(known)[:1], *(pid for pid in resident if pid not in known)]:
            known.pop(pid, None)
            known[pid] = resident[pid] - (_pss_bytes(pid) or resident[pid])
        self._shared_bytes = known


def _row(metric: metrics_core.Metric, value: float) -> Row:
    kind: Kind = "counter" if metric.type == "counter" else "gauge"
    return Metric(kind, metric.name, metric.documentation), (), value


def _pss_bytes(pid: int) -> int:
    """Return the memory of a process, its share of what others use, too; 0 if that cannot be read."""
    try:
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found is not None else 0


def _children_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[_CHILDREN])) / _TICKS_PER_SECOND

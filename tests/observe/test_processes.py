"""What several processes use, shown as that of one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from gateway.observe import processes
from gateway.observe.processes import ProcessGroup

RESIDENT = "process_resident_memory_bytes"


@pytest.fixture
def children() -> Iterator[list[int]]:
    """Processes that do nothing."""
    command = [sys.executable, "-c", "print(flush=True); input()"]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(3)]
    for child in running:
        assert child.stdout is not None
        child.stdout.readline()
    yield [child.pid for child in running]
    for child in running:
        child.communicate(b"\n")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes whose share of memory was measured, in their order."""
    pids: list[int] = []
    measure = processes._pss_bytes

    def record(pid: int) -> int:
        pids.append(pid)
        return measure(pid)

    monkeypatch.setattr(processes, "_pss_bytes", record)
    return pids


def resident_bytes(group: ProcessGroup, pids: list[int]) -> float:
    """Return the memory that is shown."""
    shown = {metric.name: value for metric, _, value in group.read_all(pids, parent=pids[0])}
    value = shown[RESIDENT]
    assert isinstance(value, float)
    return value


def test_memory_that_processes_share_counts_once(children: list[int]) -> None:
    group = ProcessGroup()
    shares = sum(map(processes._pss_bytes, children))
    # Another process that uses the same libraries may begin or end meanwhile.
    assert resident_bytes(group, children) == pytest.approx(shares, rel=0.2)
    assert resident_bytes(group, children) == pytest.approx(shares, rel=0.2)


def test_shares_are_measured_of_one_process_each_time_and_of_all_where_one_began_or_ended(
    children: list[int], measured: list[int]
) -> None:
    group = ProcessGroup()
    resident_bytes(group, children[:2])
    assert measured == children[:2]
    for _ in range(3):
        resident_bytes(group, children[:2])
    assert measured[2:] == [children[0], children[1], children[0]]
    del measured[:]
    resident_bytes(group, children)
    assert measured == children
    resident_bytes(group, children[1:])
    assert measured[3:] == children[1:]


def test_all_memory_of_a_process_is_its_own_where_its_share_cannot_be_read(
    children: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = ProcessGroup()
    monkeypatch.setattr(processes, "_pss_bytes", lambda pid: 2**20)
    assert resident_bytes(group, children) == 3 * 2**20
    monkeypatch.setattr(processes, "_pss_bytes", lambda pid: 0)
    # It takes more than 5 MiB. What the others share is known.
    assert resident_bytes(group, children) > 7 * 2**20

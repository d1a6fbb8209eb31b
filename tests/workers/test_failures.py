"""The failures that workers send, and what is kept of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from gateway.observe.live import FailureRow
from gateway.workers.failures import ENDED_KEPT, SentFailures
from gateway.workers.process import WorkerProcess
from gateway.workers.template import Child


def worker(pid: int) -> WorkerProcess:
    return WorkerProcess(cast(Child, SimpleNamespace(pid=pid)), row=0)


def row(pid: int, request: str) -> FailureRow:
    return cast(FailureRow, {"worker": pid, "request_id": request})


def requests_of(failures: SentFailures, asked: list[Any]) -> list[str]:
    return [each["request_id"] for each in failures.rows(asked)]


def test_worker_that_responds_is_shown_with_its_response_alone() -> None:
    failures, first, second = SentFailures(), worker(1), worker(2)
    failures.receive(first, [row(1, "a")])
    failures.receive(second, [row(2, "b")])
    assert requests_of(failures, [row(1, "a"), row(1, "c")]) == ["a", "c", "b"]


def test_failures_of_the_last_workers_that_have_ended_are_kept() -> None:
    failures = SentFailures()
    for pid in range(ENDED_KEPT + 2):
        ended, without = worker(pid), worker(1000 + pid)
        failures.receive(ended, [row(pid, "first")])
        failures.receive(ended, [row(pid, str(pid))])
        failures.retire(ended)
        failures.retire(without)
    assert requests_of(failures, []) == [str(pid) for pid in range(2, ENDED_KEPT + 2)]

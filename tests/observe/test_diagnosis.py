"""What is said in words when something is wrong, and that nothing is said when nothing is."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gateway.observe.diagnosis import Diagnosis
from gateway.observe.live import FailureRow, TransferRow
from gateway.observe.report import UpstreamRow


def transfer(**keys: Any) -> TransferRow:
    row: dict[str, Any] = {
        "id": "1-1", "request_id": "x", "worker": 1, "route": "transcribe", "upstream": "asr",
        "endpoint": "http://127.0.0.1:5000", "direction": "upload", "client": "10.0.0.7", "method": "POST",
        "target": "/", "started": "2026-01-01T00:00:00.000+00:00", "seconds": 60.0, "bytes": 1000, "length": 10_000_000,
        "bytes_per_second": 5_000_000, "average_bytes_per_second": 5_000_000, "eta_seconds": 2.0,
        "waiting_on": "downstream_read", "waiting_seconds": 0.01,
        "wait_seconds": {"downstream_read": 50.0, "upstream_write": 10.0}, "lane": "copy", "parts": 0, **keys,
    }  # fmt: skip
    return cast("TransferRow", row)


def upstream(*endpoints: tuple[bool, str | None], **keys: Any) -> UpstreamRow:
    row: dict[str, Any] = {
        "upstream": "asr", "slots": 8, "in_flight": 8, "queue_length": 12, "requests": 100, "errors": 0, "retries": 0,
        "endpoints": [
            {"endpoint": f"http://127.0.0.1:500{index}", "is_up": is_up, "reason": reason}
            for index, (is_up, reason) in enumerate(endpoints)
        ],
        **keys,
    }  # fmt: skip
    return cast("UpstreamRow", row)


def failure(**keys: Any) -> FailureRow:
    row = {
        "worker": 1, "route": "transcribe", "upstream": "asr", "blame": "upstream", "code": "connect_refused",
        "outcome": "x",
    }  # fmt: skip
    return cast("FailureRow", row | keys)


def texts(
    *transfers: TransferRow, upstreams: tuple[UpstreamRow, ...] = (), failures: tuple[FailureRow, ...] = ()
) -> list[tuple[str, str, str]]:
    diagnosis = Diagnosis()
    for each in transfers:
        diagnosis.add(each)
    found = diagnosis.problems(upstreams, failures)
    return [(problem["severity"], problem["blame"], problem["text"]) for problem in found]


def test_nothing_is_wrong_with_transfers_that_move_and_upstreams_that_are_up() -> None:
    assert texts(transfer(), transfer(direction="download"), upstreams=(upstream((True, None)),)) == []


@pytest.mark.parametrize(
    "row",
    [
        transfer(waiting_on="upstream_response", waiting_seconds=9.0),
        transfer(waiting_on="queue", waiting_seconds=0.5),
        transfer(waiting_on="upstream_read", waiting_seconds=50.0, length=None, direction="download"),
        # Slow, but soon over; slow, but young; of unknown length.
        transfer(bytes_per_second=1000, eta_seconds=5.0),
        transfer(bytes_per_second=1000, eta_seconds=500.0, seconds=2.0),
        transfer(bytes_per_second=1000, eta_seconds=None, length=None),
    ],
)
def test_nothing_is_said_of_waits_that_are_usual(row: TransferRow) -> None:
    assert texts(row) == []


def test_full_queue_is_told_with_slots_and_its_length() -> None:
    waiting = [transfer(waiting_on="queue", waiting_seconds=seconds) for seconds in (2.0, 4.0, 3.0)]
    assert texts(*waiting, upstreams=(upstream((True, None)),)) == [
        (
            "warning",
            "upstream",
            "3 requests on `transcribe` wait for upstream asr: 8 of 8 slots busy, queue 12, the longest for 4 s",
        )
    ]


def test_problem_names_what_is_waited_for_and_the_first_transfers() -> None:
    diagnosis = Diagnosis()
    for number in range(25):
        diagnosis.add(transfer(id=f"1-{number}", waiting_on="queue", waiting_seconds=2.0))
    (problem,) = diagnosis.problems([], [failure(code="queue_full", blame="gateway")])[1:]
    assert (problem["leg"], problem["transfers"]) == ("queue", [f"1-{number}" for number in range(20)])


def test_slow_model_is_told_apart_from_a_slow_client() -> None:
    model = transfer(waiting_on="upstream_response", waiting_seconds=42.0)
    client = transfer(bytes_per_second=31_000, eta_seconds=300.0)
    assert texts(model, client) == [
        ("warning", "upstream", "1 request on `transcribe` waits for the response of upstream asr, 42 s"),
        ("warning", "client", "1 upload on `transcribe` is slow, 31 kB/s: the client sends slowly (10.0.0.7)"),
    ]


@pytest.mark.parametrize(
    ("leg", "blame", "text"),
    [
        ("downstream_read", "client", "wait for the client to send (10.0.0.7), the longest for 7 s"),
        ("downstream_write", "client", "wait for the client to read (10.0.0.7), the longest for 7 s"),
        ("upstream_write", "upstream", "wait for upstream asr to read, the longest for 7 s"),
        ("upstream_read", "upstream", "wait for upstream asr to send the rest of its response, the longest for 7 s"),
        ("connect", "upstream", "wait for a connection to upstream asr, the longest for 7 s"),
        ("disk_write", "gateway", "wait for the disk to write, the longest for 7 s"),
        ("filter", "gateway", "wait for a filter, the longest for 7 s"),
    ],
)
def test_transfers_that_stand_still_are_told_with_what_they_wait_for(leg: str, blame: str, text: str) -> None:
    row = transfer(waiting_on=leg, waiting_seconds=7.0, bytes_per_second=0, eta_seconds=None)
    ((severity, found, sentence),) = texts(row, row)
    assert (severity, found) == ("warning", blame)
    assert sentence.endswith(text)


def test_at_most_two_clients_are_named() -> None:
    rows = [transfer(waiting_seconds=7.0, client=f"10.0.0.{number}") for number in range(9)]
    ((_, _, text),) = texts(*rows)
    assert "(10.0.0.0, 10.0.0.1 and others)" in text


def test_upstream_that_is_down_comes_first_with_the_reason() -> None:
    down = upstream((False, "2 checks failed: connection refused"), queue_length=0)
    found = texts(transfer(waiting_seconds=9.0), upstreams=(down,))
    assert found[0] == (
        "error",
        "upstream",
        "Upstream asr is down (http://127.0.0.1:5000: 2 checks failed: connection refused)",
    )
    partly = upstream((True, None), (False, None))
    assert texts(upstreams=(partly,)) == [
        ("warning", "upstream", "1 of 2 endpoints of upstream asr is down (http://127.0.0.1:5001: down)")
    ]


def test_failures_of_the_last_minute_are_counted_without_those_of_clients_and_operators() -> None:
    failures = (
        failure(), failure(), failure(blame="client", code="client_left"),
        failure(blame="gateway", code="operator_cancelled", outcome="cancelled"),
        failure(blame="gateway", code="disk_full", route=None, upstream=None),
    )  # fmt: skip
    text = "2 requests failed on `transcribe` in the last minute because of upstream asr: connect_refused"
    assert texts(failures=failures) == [
        ("error", "upstream", text),
        ("error", "gateway", "1 request failed in the last minute because of the gateway: disk_full"),
    ]  # fmt: skip


def test_requests_without_a_slot_failed_because_of_the_upstreams_slots() -> None:
    text = "1 request failed on `transcribe` in the last minute because no slot of upstream asr was free: queue_full"
    assert texts(failures=(failure(blame="gateway", code="queue_full"),)) == [("error", "gateway", text)]


@pytest.mark.parametrize(("workers", "count"), [(1, "At least 50 requests"), (2, "50 requests")])
def test_more_failures_than_are_kept_are_at_least_those(workers: int, count: str) -> None:
    rows = [failure(worker=number % workers) for number in range(50)]
    ((_, _, text),) = texts(failures=tuple(rows))
    assert text.startswith(f"{count} failed on")

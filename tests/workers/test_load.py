"""The table of what each worker has to do."""

from __future__ import annotations

import time

import pytest

from gateway.workers.load import MAX_ROWS, LoadRow, LoadTable


@pytest.fixture
def table() -> LoadTable:
    return LoadTable()


def ready_row(table: LoadTable, connections: int = 0) -> LoadRow:
    number = table.take_row()
    row = LoadRow(table, number)
    row.tick(connections=connections, transfers=0, moved_bytes=0)
    table.set_ready(number, is_ready=True)
    return row


def test_worker_with_more_connections_has_more(table: LoadTable) -> None:
    first, second = ready_row(table), ready_row(table)
    assert not first.has_more()
    first.count(1)
    assert first.has_more()
    assert not second.has_more()
    second.count(2)
    first.count(-1)
    assert not first.has_more()
    assert second.has_more()


def test_transfer_weighs_more_than_idle_connections(table: LoadTable, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    busy, idle = ready_row(table), ready_row(table)
    now += 1
    busy.tick(connections=1, transfers=1, moved_bytes=320 * 2**20)
    idle.tick(connections=20, transfers=0, moved_bytes=0)
    assert busy.has_more()
    assert not idle.has_more()
    now += 1
    # A route that a reload removed takes its bytes along.
    busy.tick(connections=1, transfers=1, moved_bytes=0)
    assert not busy.has_more()


def test_transfers_that_have_ended_weigh_nothing(table: LoadTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight uploads after eight others all went to the worker that had finished first."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    first, second = ready_row(table, connections=4), ready_row(table)
    now += 1
    first.tick(connections=4, transfers=4, moved_bytes=2**30)
    second.count(3)
    assert first.has_more()
    first.count(-1)
    first.count(-1)
    assert first.has_more()
    first.count(-1)
    first.count(-1)
    assert not first.has_more()
    now += 1
    # They have moved some bytes before their end in that second.
    first.tick(connections=0, transfers=0, moved_bytes=2 * 2**30)
    assert not first.has_more()


def test_worker_that_does_not_accept_is_not_compared(table: LoadTable) -> None:
    first, number = ready_row(table, connections=1), table.take_row()
    second = LoadRow(table, number)
    second.tick(connections=0, transfers=0, moved_bytes=0)
    assert not first.has_more()
    table.set_ready(number, is_ready=True)
    assert first.has_more()
    table.set_ready(number, is_ready=False)
    assert not first.has_more()


def test_worker_whose_loop_is_stuck_is_not_waited_for(table: LoadTable, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    first, stuck = ready_row(table, connections=1), ready_row(table)
    assert first.has_more()
    now += 3
    assert not first.has_more()
    stuck.tick(connections=0, transfers=0, moved_bytes=0)
    assert first.has_more()


def test_rows_are_given_back_empty_and_the_lowest_first(table: LoadTable) -> None:
    numbers = [table.take_row() for _ in range(3)]
    LoadRow(table, numbers[1]).tick(connections=5, transfers=7, moved_bytes=0)
    table.set_ready(numbers[1], is_ready=True)
    assert (table.connections(numbers[1]), table.transfers(numbers[1])) == (5, 7)
    assert table.beat(numbers[1]) > 0
    for number in reversed(numbers):
        table.give_back(number)
    assert [table.take_row() for _ in range(3)] == numbers
    assert (table.connections(numbers[1]), table.transfers(numbers[1]), table.beat(numbers[1])) == (0, 0, 0)


def test_there_are_rows_for_twice_the_workers_and_more(table: LoadTable) -> None:
    assert len({table.take_row() for _ in range(MAX_ROWS - 1)}) == MAX_ROWS - 1 > 2 * 256

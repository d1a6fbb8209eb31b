"""The table of what each worker has to do."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from gateway.workers.load import LATE_SECONDS, MAX_ROWS, LoadRow, LoadTable
from tests.clock import Clock


@pytest.fixture
def table() -> LoadTable:
    return LoadTable()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(time.monotonic())
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def ready_row(table: LoadTable, connections: int = 0) -> LoadRow:
    number = table.take_row()
    row = LoadRow(table, number)
    row.tick(connections=connections, transfers=0, moved_bytes=0)
    row.set_accepting(is_accepting=True)
    table.set_ready(number, is_ready=True)
    return row


def leaves_one(row: LoadRow, left_seconds: float = 0.0) -> bool:
    """Return whether a worker leaves the next connection to another."""
    return not row.may_accept(left_seconds)


def test_worker_with_two_connections_more_leaves_the_next_to_the_other(table: LoadTable) -> None:
    first, second = ready_row(table), ready_row(table)
    assert not leaves_one(first)
    first.count(1)
    assert not leaves_one(first)
    first.count(1)
    assert leaves_one(first)
    assert not leaves_one(second)
    second.count(1)
    assert not leaves_one(first)
    first.count(-2)
    second.count(1)
    assert not leaves_one(first)
    assert leaves_one(second)


class Burst:
    """Clients that connect one after the other, and the workers that accept them in small steps."""

    def __init__(self, rows: list[LoadRow], clients: int) -> None:
        #: Connections that each worker has accepted.
        self.accepted = dict.fromkeys(rows, 0)
        self.steps = [self._connect(clients), *map(self._accept, rows)]
        self._queued = 0

    def _connect(self, clients: int) -> Iterator[None]:
        for _ in range(clients):
            self._queued += 1
            yield
        while True:
            yield

    def _accept(self, row: LoadRow) -> Iterator[None]:
        """Accept connections as `Acceptor` does: a worker may lose its core at each `yield`."""
        while True:
            if self._queued and row.may_accept(0.0):
                yield
                assert row.reserve(100)
                yield
                is_accepted = self._queued > 0
                self._queued -= is_accepted
                self.accepted[row] += is_accepted
                yield
                row.end_reservation(is_accepted=is_accepted)
            yield


# While a reserved place was a load, one of 4 workers took none or 4 of half of these bursts.
@pytest.mark.parametrize(("workers", "bounds"), [(2, (5, 3)), (3, (4, 1)), (4, (3, 1))])
@pytest.mark.usefixtures("clock")
def test_burst_of_eight_is_spread_wherever_workers_lose_their_cores(
    table: LoadTable, workers: int, bounds: tuple[int, int]
) -> None:
    choose = random.Random(workers)
    for _ in range(50):
        burst = Burst([ready_row(table) for _ in range(workers)], 8)
        # How much of the cores each has: some little.
        shares = [choose.choice([0.01, 0.1, 1.0]) for _ in burst.steps]
        while sum(burst.accepted.values()) < 8:
            next(*choose.choices(burst.steps, shares))
        assert max(burst.accepted.values()) <= bounds[0]
        assert min(burst.accepted.values()) >= bounds[1]
        for number in range(1, workers + 1):
            table.give_back(number)


def test_places_that_workers_reserve_are_within_the_limit(table: LoadTable) -> None:
    first, second = ready_row(table, connections=3), ready_row(table)
    assert not first.reserve(3)
    assert first.total() == 3
    assert first.reserve(4)
    assert not second.reserve(4)
    first.end_reservation(is_accepted=False)
    assert second.reserve(4)
    assert second.total() == 4
    second.end_reservation(is_accepted=True)
    assert second.total() == 4
    assert not first.reserve(4)
    second.count(-1)
    assert first.reserve(4)


def test_transfer_weighs_more_than_idle_connections(table: LoadTable, clock: Clock) -> None:
    busy, idle = ready_row(table), ready_row(table)
    clock.now += 1
    busy.tick(connections=1, transfers=1, moved_bytes=320 * 2**20)
    idle.tick(connections=19, transfers=0, moved_bytes=0)
    assert leaves_one(busy)
    assert not leaves_one(idle)
    clock.now += 1
    # A route that a reload removed takes its bytes along.
    busy.tick(connections=1, transfers=1, moved_bytes=0)
    assert not leaves_one(busy)


def test_transfers_that_have_ended_weigh_nothing(table: LoadTable, clock: Clock) -> None:
    """Eight uploads after eight others all went to the worker that had finished first."""
    first, second = ready_row(table, connections=4), ready_row(table)
    clock.now += 1
    first.tick(connections=4, transfers=4, moved_bytes=2**30)
    second.count(3)
    assert leaves_one(first)
    first.count(-1)
    first.count(-1)
    assert leaves_one(first)
    first.count(-1)
    first.count(-1)
    assert not leaves_one(first)
    clock.now += 1
    # They have moved some bytes before their end in that second.
    first.tick(connections=0, transfers=0, moved_bytes=2 * 2**30)
    assert not leaves_one(first)


def test_nothing_is_left_to_a_worker_that_does_not_accept(table: LoadTable) -> None:
    first, number = ready_row(table, connections=2), table.take_row()
    second = LoadRow(table, number)
    second.tick(connections=0, transfers=0, moved_bytes=0)
    assert not leaves_one(first)
    table.set_ready(number, is_ready=True)
    assert not leaves_one(first)
    second.set_accepting(is_accepting=True)
    assert leaves_one(first)
    second.set_accepting(is_accepting=False)
    assert not leaves_one(first)
    second.set_accepting(is_accepting=True)
    table.set_ready(number, is_ready=False)
    assert not leaves_one(first)


def test_worker_that_is_awake_is_waited_for(table: LoadTable, clock: Clock) -> None:
    first, second = ready_row(table, connections=2), ready_row(table)
    for step in range(20):
        assert leaves_one(first, left_seconds=step * 0.01)
        clock.now += 0.01
        assert not leaves_one(second)


def test_late_worker_is_waited_for_once_until_it_is_awake(table: LoadTable, clock: Clock) -> None:
    first, late = ready_row(table, connections=2), ready_row(table)
    assert leaves_one(first)
    clock.now += 0.6 * LATE_SECONDS
    assert leaves_one(first, 0.6 * LATE_SECONDS)
    clock.now += 0.6 * LATE_SECONDS
    assert not leaves_one(first, 1.2 * LATE_SECONDS)
    first.count(1)
    assert not leaves_one(first)
    assert not leaves_one(late)
    assert leaves_one(first)


def test_late_worker_is_waited_for_again_after_a_second(table: LoadTable, clock: Clock) -> None:
    first, late = ready_row(table, connections=2), ready_row(table)
    clock.now += 1.2 * LATE_SECONDS
    assert not leaves_one(first, 1.2 * LATE_SECONDS)
    clock.now += 1
    for row in (first, late):
        row.tick(connections=2 if row is first else 0, transfers=0, moved_bytes=0)
    assert leaves_one(first)


def test_worker_whose_loop_is_stuck_is_not_waited_for(table: LoadTable, clock: Clock) -> None:
    first, stuck = ready_row(table, connections=2), ready_row(table)
    assert leaves_one(first)
    clock.now += 3
    assert not leaves_one(first)
    stuck.tick(connections=0, transfers=0, moved_bytes=0)
    assert leaves_one(first)


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

"""The pauses before a worker that died is replaced."""

from __future__ import annotations

from gateway.workers.restarts import LONG_SECONDS, Pauses


def test_pauses_grow_while_workers_die_at_once_and_are_bounded() -> None:
    pauses = Pauses()
    assert [pauses.after(0.1) for _ in range(10)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_worker_that_lived_long_is_replaced_at_once() -> None:
    pauses = Pauses()
    assert [pauses.after(LONG_SECONDS) for _ in range(3)] == [0, 0.5, 1]
    assert [pauses.after(LONG_SECONDS + 1), pauses.after(0.1)] == [0, 0.5]

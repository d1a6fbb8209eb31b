"""Timers of equal length: in order, stopped for nothing, never more than one of the loop's."""

from __future__ import annotations

import asyncio

import pytest

from gateway.transfer.timers import Timers


async def test_timers_ring_once_in_the_order_in_which_they_were_started() -> None:
    timers, rung, done = Timers(), list[str](), asyncio.Event()
    queue = timers.of(0.01)
    assert timers.of(0.01) is queue
    for key in ("a", "b", "c", "d"):
        queue.start(key, lambda key=key: rung.append(key))  # type: ignore[misc]  # mypy cannot infer a default's type
    queue.stop("b")
    queue.stop("never started")
    queue.start("e", done.set)
    await asyncio.wait_for(done.wait(), 5)
    assert rung == ["a", "c", "d"]


async def test_timer_started_again_while_it_rings_rings_again() -> None:
    queue, done, count = Timers().of(0.01), asyncio.Event(), 0

    def ring() -> None:
        nonlocal count
        count += 1
        if count < 3:
            queue.start("a", ring)
        else:
            done.set()

    queue.start("a", ring)
    await asyncio.wait_for(done.wait(), 5)
    assert count == 3


async def test_timer_that_fails_takes_no_other_along() -> None:
    queue, done = Timers().of(0.01), asyncio.Event()
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

    def fail() -> None:
        raise ZeroDivisionError

    queue.start("a", fail)
    queue.start("b", done.set)
    await asyncio.wait_for(done.wait(), 5)
    assert isinstance(told[0], ZeroDivisionError)


@pytest.mark.parametrize("is_closed", [False, True])
async def test_timers_that_are_stopped_never_ring(is_closed: bool) -> None:
    timers, rung, done = Timers(), list[str](), asyncio.Event()
    timers.of(0.01).start("a", lambda: rung.append("a"))
    if is_closed:
        timers.close()
        timers.close()
    else:
        timers.of(0.01).stop("a")
    timers.of(0.02).start("b", done.set)
    await asyncio.wait_for(done.wait(), 5)
    assert not rung

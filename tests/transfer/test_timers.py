"""Timers of equal length: they fire in order, can be stopped, and use one timer of the event loop."""

from __future__ import annotations

import asyncio

import pytest

from gateway.transfer.timers import Timers
from tests.peers import TIMEOUT_SECONDS


async def test_timers_fire_once_in_the_order_in_which_they_were_started() -> None:
    timers, fired, done = Timers(), list[str](), asyncio.Event()
    queue = timers.of(0.01)
    assert timers.of(0.01) is queue
    for key in ("a", "b", "c", "d"):
        queue.start(key, lambda key=key: fired.append(key))  # type: ignore[misc]  # mypy cannot infer a default's type
    queue.stop("b")
    queue.stop("never started")
    queue.start("e", done.set)
    await asyncio.wait_for(done.wait(), TIMEOUT_SECONDS)
    assert fired == ["a", "c", "d"]


async def test_timer_started_again_while_it_fires_fires_again() -> None:
    queue, done, count = Timers().of(0.01), asyncio.Event(), 0

    def fire() -> None:
        nonlocal count
        count += 1
        if count < 3:
            queue.start("a", fire)
        else:
            done.set()

    queue.start("a", fire)
    await asyncio.wait_for(done.wait(), TIMEOUT_SECONDS)
    assert count == 3


async def test_timer_whose_callback_raises_does_not_stop_others() -> None:
    queue, done = Timers().of(0.01), asyncio.Event()
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def fail() -> None:
        raise ZeroDivisionError

    queue.start("a", fail)
    queue.start("b", done.set)
    await asyncio.wait_for(done.wait(), TIMEOUT_SECONDS)
    assert isinstance(reported[0], ZeroDivisionError)


@pytest.mark.parametrize("is_closed", [False, True])
async def test_stopped_timers_never_fire(is_closed: bool) -> None:
    timers, fired, done = Timers(), list[str](), asyncio.Event()
    timers.of(0.01).start("a", lambda: fired.append("a"))
    if is_closed:
        timers.close()
        timers.close()
    else:
        timers.of(0.01).stop("a")
    timers.of(0.02).start("b", done.set)
    await asyncio.wait_for(done.wait(), TIMEOUT_SECONDS)
    assert not fired

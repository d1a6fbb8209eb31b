"""Turns: bodies share the time of each iteration of the event loop, in the order in which they ask."""

from __future__ import annotations

import asyncio

from gateway.transfer import Turns
from gateway.transfer.turns import TURN_SECONDS
from tests.peers import wait_until


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_time_of_an_iteration_is_shared_and_the_next_has_its_own() -> None:
    clock = Clock()
    turns = Turns(clock)
    assert turns.has_time()
    clock.now += TURN_SECONDS * 0.6
    assert turns.has_time()
    clock.now += TURN_SECONDS * 0.6
    assert not turns.has_time()
    await asyncio.sleep(0)
    assert turns.has_time()


async def work(turns: Turns, clock: Clock, name: str, steps: int, log: list[str]) -> None:
    """Take steps as the loop over a body does, each of a third of the time."""
    for _ in range(steps):
        log.append(name)
        clock.now += TURN_SECONDS / 3
        if not turns.has_time():
            await turns.wait()


async def test_bodies_take_steps_in_the_order_in_which_they_ask() -> None:
    clock, log = Clock(), list[str]()
    turns = Turns(clock)
    names = [f"{number:02}" for number in range(20)]
    await asyncio.gather(*(work(turns, clock, name, 10, log) for name in names))
    # The first has no others to wait for, at first.
    assert log[:3] == ["00"] * 3
    assert all(log[at : at + 20] == names for at in range(3, 140, 20))


async def test_iteration_takes_no_longer_than_its_time_and_a_step() -> None:
    clock, log = Clock(), list[str]()
    turns = Turns(clock)
    working = [asyncio.ensure_future(work(turns, clock, str(number), 6, log)) for number in range(50)]
    # Each body takes its first step without asking.
    await asyncio.sleep(0)
    longest, before = 0.0, clock.now
    while not all(task.done() for task in working):
        await asyncio.sleep(0)
        longest, before = max(longest, clock.now - before), clock.now
    await asyncio.gather(*working)
    assert longest <= 2 * (TURN_SECONDS + TURN_SECONDS / 3)


async def test_body_that_left_while_it_waited_is_passed_over() -> None:
    clock = Clock()
    turns = Turns(clock)
    assert turns.has_time()
    clock.now += TURN_SECONDS
    left, stayed = asyncio.ensure_future(turns.wait()), asyncio.ensure_future(turns.wait())
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait_for(stayed, 1)
    assert left.cancelled()


async def test_step_of_a_protocol_is_called_in_its_turn() -> None:
    clock, log = Clock(), list[str]()
    turns = Turns(clock)

    def step(name: str) -> None:
        log.append(name)
        clock.now += TURN_SECONDS

    for name in "abc":
        turns.call(lambda name=name: step(name))  # type: ignore[misc]
    assert not turns.has_time()
    await wait_until(lambda: len(log) == 3)
    assert log == ["a", "b", "c"]

"""Turns: bodies share the time of each iteration of the event loop, in the order in which they ask."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from gateway.transfer import Turns
from gateway.transfer.turns import KEEPING_BYTES, TURN_SECONDS, Turn
from tests.clock import Clock
from tests.peers import TIMEOUT_SECONDS, wait_until


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


async def test_step_that_fails_keeps_none_of_the_others_waiting() -> None:
    """They waited until something else asked for a turn."""
    turns, has_run = Turns(), asyncio.Event()
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
    failure = MemoryError()

    def fail() -> None:
        raise failure

    turns.call(fail)
    turns.call(has_run.set)
    await asyncio.wait_for(has_run.wait(), TIMEOUT_SECONDS)
    assert failures == [failure]


async def test_body_that_left_while_it_waited_is_passed_over() -> None:
    clock = Clock()
    turns = Turns(clock)
    assert turns.has_time()
    clock.now += TURN_SECONDS
    left, stayed = asyncio.ensure_future(turns.wait()), asyncio.ensure_future(turns.wait())
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait_for(stayed, TIMEOUT_SECONDS)
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


async def test_callback_of_an_event_comes_after_the_tasks_that_were_continued() -> None:
    """It comes before them in each iteration, and took all of the time of each."""
    clock, log = Clock(), list[str]()
    turns = Turns(clock)
    loop = asyncio.get_running_loop()

    async def wait() -> None:
        await turns.wait()
        log.append("task")

    def handle_event() -> None:
        if turns.has_time_for_event():
            log.append("event")
            clock.now += TURN_SECONDS
        if len(log) < 2:
            loop.call_soon(handle_event)

    waiting = asyncio.create_task(wait())
    # It begins to wait.
    await asyncio.sleep(0)
    handle_event()
    await waiting
    await wait_until(lambda: len(log) == 2)
    assert log == ["task", "event"]


async def test_task_that_was_continued_and_is_cancelled_keeps_no_event_waiting() -> None:
    turns = Turns(Clock())
    waiting = asyncio.create_task(turns.wait())
    # It begins to wait; then it is continued, and has not run yet.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not turns.has_time_for_event()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert turns.has_time_for_event()


@pytest.mark.parametrize("is_continued", [False, True])
async def test_wait_that_is_closed_is_passed_over_and_not_counted_as_one_that_has_run(*, is_continued: bool) -> None:
    turns = Turns(Clock())
    waiting = turns.wait()
    waiting.send(None)
    if is_continued:
        # The iteration in which the wait is continued.
        await asyncio.sleep(0)
        assert turns._due_count == 1
    waiting.close()
    assert turns._due_count == 0
    # The iteration that was scheduled: it passes over what was closed.
    await asyncio.sleep(0)
    assert turns._due_count == 0
    assert turns.has_time_for_event()


async def move(
    turns: Turns, clock: Clock, name: str, steps: int, log: list[str], *, chunk_bytes: int = KEEPING_BYTES
) -> None:
    """Take steps as `pump` does, each of a quarter of the time of an iteration."""
    turn, moved_bytes = Turn(turns, 0), 0
    for _ in range(steps):
        log.append(name)
        clock.now += TURN_SECONDS / 4
        moved_bytes += chunk_bytes
        if not turn.has_time():
            await turn.wait(moved_bytes)


def longest_runs(log: list[str]) -> dict[str, int]:
    """Return for each name how many steps it took at most before another took one."""
    longest: dict[str, int] = {}
    for name, steps in itertools.groupby(log):
        longest[name] = max(longest.get(name, 0), len(list(steps)))
    return longest


# Eight uploads at once cost 17 to 25 % more while bodies changed after each chunk.
async def test_bodies_with_large_chunks_keep_their_turns_for_several_iterations() -> None:
    clock, log = Clock(), list[str]()
    turns = Turns(clock)
    names = [str(number) for number in range(8)]
    await asyncio.gather(*(move(turns, clock, name, 40, log) for name in names))
    assert sorted(log) == sorted(names * 40)
    assert all(8 <= steps <= 40 for steps in longest_runs(log).values())


# Uploads of 1-byte chunks kept their turns as well, and a GET beside 50 of them took twice as long.
async def test_bodies_with_small_chunks_give_way_after_each_step() -> None:
    clock, log = Clock(), list[str]()
    turns = Turns(clock)
    names = [str(number) for number in range(8)]
    await asyncio.gather(*(move(turns, clock, name, 40, log, chunk_bytes=1000) for name in names))
    # The first has no others to wait for, at first.
    assert all(log[at : at + 8] == log[8:16] for at in range(8, 160, 8))


async def test_turns_of_bodies_with_large_chunks_are_short_where_many_wait() -> None:
    clock, log = Clock(), list[str]()
    turns = Turns(clock)
    names = [str(number) for number in range(64)]
    await asyncio.gather(*(move(turns, clock, name, 12, log) for name in names))
    middle = log[len(names) : -4 * len(names)]
    assert all(steps <= 4 for steps in longest_runs(middle).values())


async def test_iteration_takes_no_longer_while_a_body_keeps_its_turn() -> None:
    clock, log = Clock(), list[str]()
    turns = Turns(clock)
    moving = [asyncio.ensure_future(move(turns, clock, str(number), 40, log)) for number in range(3)]
    await asyncio.sleep(0)
    longest, before = 0.0, clock.now
    while not all(task.done() for task in moving):
        await asyncio.sleep(0)
        longest, before = max(longest, clock.now - before), clock.now
    await asyncio.gather(*moving)
    assert longest <= 2 * (TURN_SECONDS + TURN_SECONDS / 4)


async def test_turn_of_a_body_that_leaves_goes_to_the_next() -> None:
    clock, log = Clock(), list[str]()
    turns = Turns(clock)
    leaving = asyncio.ensure_future(move(turns, clock, "leaves", 1000, log))
    await wait_until(lambda: log.count("leaves") >= 8)
    staying = asyncio.ensure_future(move(turns, clock, "stays", 20, log))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait_for(staying, TIMEOUT_SECONDS)
    assert log.count("stays") == 20

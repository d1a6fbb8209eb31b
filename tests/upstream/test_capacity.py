"""The capacity limiter of an upstream, and the counter of exchanges in flight that a drain waits for."""

from __future__ import annotations

import asyncio
import math

import pytest

from gateway.errors import Fault
from gateway.observe.stats import UpstreamStats
from gateway.runtime import InFlightCounter
from gateway.upstream.capacity import CapacityLimiter


def limiter(stats: UpstreamStats, *, slots: float) -> CapacityLimiter:
    capacity = CapacityLimiter(stats)
    capacity.configure(slots=slots, max_queued=10, queue_seconds=math.inf)
    return capacity


class Holders:
    """Tasks that take a slot each, in the order of their numbers, and give it back when they are released."""

    def __init__(self, capacity: CapacityLimiter, group: asyncio.TaskGroup) -> None:
        self._capacity = capacity
        self._group = group
        self.holding: list[int] = []
        self._releases: list[asyncio.Event] = []

    async def add(self, count: int) -> list[asyncio.Task[None]]:
        tasks = []
        for _ in range(count):
            self._releases.append(asyncio.Event())
            tasks.append(self._group.create_task(self._hold(len(self._releases) - 1)))
        await asyncio.sleep(0)
        return tasks

    async def release(self, number: int) -> None:
        self._releases[number].set()
        for _ in range(3):
            await asyncio.sleep(0)

    async def _hold(self, number: int) -> None:
        async with self._capacity:
            self.holding.append(number)
            await self._releases[number].wait()
            self.holding.remove(number)


async def test_more_slots_go_to_those_that_wait_longest() -> None:
    stats = UpstreamStats("up")
    capacity = limiter(stats, slots=1)
    async with asyncio.TaskGroup() as group:
        holders = Holders(capacity, group)
        await holders.add(4)
        capacity.configure(slots=3, max_queued=10, queue_seconds=math.inf)
        await asyncio.sleep(0)
        assert holders.holding == [0, 1, 2]
        assert stats.queue_length == 1
        for number in range(4):
            await holders.release(number)


async def test_fewer_slots_are_in_force_once_enough_were_given_back() -> None:
    capacity = limiter(UpstreamStats("up"), slots=3)
    async with asyncio.TaskGroup() as group:
        holders = Holders(capacity, group)
        await holders.add(5)
        capacity.configure(slots=1, max_queued=10, queue_seconds=math.inf)
        await holders.release(0)
        await holders.release(1)
        assert holders.holding == [2]
        await holders.release(2)
        assert holders.holding == [3]
        await holders.release(3)
        await holders.release(4)


async def test_shorter_queue_keeps_those_in_it_and_refuses_further_ones() -> None:
    capacity = limiter(UpstreamStats("up"), slots=1)
    async with asyncio.TaskGroup() as group:
        holders = Holders(capacity, group)
        await holders.add(3)
        capacity.configure(slots=1, max_queued=1, queue_seconds=math.inf)
        with pytest.raises(Fault, match="1 exchanges in flight and 2 waiting"):
            await capacity.__aenter__()
        for number in range(3):
            await holders.release(number)


async def test_changed_queue_timeout_counts_from_the_arrival() -> None:
    capacity = limiter(UpstreamStats("up"), slots=1)
    async with capacity:
        waiting = asyncio.create_task(capacity.__aenter__())
        await asyncio.sleep(0)
        capacity.configure(slots=1, max_queued=10, queue_seconds=1e-9)
        with pytest.raises(Fault, match=r"No slot of upstream 'up' became free within 1e-09 s"):
            await waiting


async def test_slots_are_assigned_in_order_and_none_is_lost() -> None:
    stats = UpstreamStats("up")
    capacity = limiter(stats, slots=1)
    order: list[int] = []

    async def hold(number: int) -> None:
        async with capacity:
            order.append(number)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(hold(number)) for number in range(6)]
        await asyncio.sleep(0)
        assert stats.queue_length == 5
        tasks[2].cancel()
    assert order == [0, 1, 3, 4, 5]
    assert stats.queue_length == 0
    async with capacity:
        pass


async def test_slot_of_a_request_cancelled_in_the_same_loop_iteration_goes_to_the_next() -> None:
    capacity = limiter(UpstreamStats("up"), slots=1)
    inside = asyncio.Event()
    release = asyncio.Event()

    async def hold() -> None:
        async with capacity:
            inside.set()
            await release.wait()

    async def take() -> bool:
        async with capacity:
            return True

    first = asyncio.create_task(hold())
    await inside.wait()
    second, third = asyncio.create_task(take()), asyncio.create_task(take())
    await asyncio.sleep(0)
    release.set()
    await first
    second.cancel()
    assert await third
    await asyncio.gather(second, return_exceptions=True)


async def test_in_flight_counter_waits_for_the_last_exchange() -> None:
    exchanges = InFlightCounter()
    await exchanges.wait_empty()
    with exchanges:
        waiting = asyncio.create_task(exchanges.wait_empty())
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting

"""The capacity limiter of an upstream, and the counter of exchanges in flight that a drain waits for."""

from __future__ import annotations

import asyncio

from gateway.observe.stats import UpstreamStats
from gateway.runtime import InFlightCounter
from gateway.upstream.capacity import CapacityLimiter


async def test_slots_are_assigned_in_order_and_none_is_lost() -> None:
    stats = UpstreamStats("up")
    capacity = CapacityLimiter(slots=1, max_queued=10, queue_seconds=float("inf"), stats=stats)
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
    capacity = CapacityLimiter(slots=1, max_queued=10, queue_seconds=float("inf"), stats=UpstreamStats("up"))
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


async def test_drain_waits_for_the_last_exchange() -> None:
    drain = InFlightCounter()
    await drain.wait_empty()
    with drain:
        drain.begin()
        waiting = asyncio.create_task(drain.wait_empty())
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
    assert drain.is_draining

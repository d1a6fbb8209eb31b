"""The same random exchanges with the express lane and without it: nothing else may differ."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from gateway.observe.stats import Direction
from tests.express.cases import make_case
from tests.express.pair import Side, count_everything, run_side
from tests.peers import DEFAULTS

#: Of all cases; the others are too large, slow, malformed, or fail.
_LEAST_SHARE = 0.3


async def compare(seed: int, count: int) -> float:
    """Run cases through both gateways; return the share that took the express lane to its end."""
    generator = random.Random(seed)
    lanes: Counter[bool] = Counter()
    async with run_side("auto") as express, run_side("copy") as normal:
        for number in range(count):
            case = make_case(number, generator)
            by_express, by_normal = await asyncio.gather(express.run(case), normal.run(case))
            lanes["express" in by_express.pop("lanes")] += 1
            assert "express" not in by_normal.pop("lanes")
            keys = [key for key, value in by_normal.items() if by_express[key] != value]
            differing = {key: (by_express[key], by_normal[key]) for key in keys}
            assert not differing, f"{differing!r:.2000}\n{case}"
        await _leave_nothing(express, normal)
        assert count_everything(express.gateway.stats) == count_everything(normal.gateway.stats)
        for side in (express, normal):
            assert not any(side.gateway.gateway._handler._exchanges.values())
    share = lanes[True] / count
    print(f"seed {seed}: {lanes[True]} of {count} exchanges took the express lane")
    return share


async def _leave_nothing(*sides: Side) -> None:
    for side in sides:
        stats = side.gateway.stats
        assert all(each.in_flight == 0 for each in stats.routes.values())
        assert all(end.in_flight == 0 for each in stats.upstreams.values() for end in each.endpoints.values())
        runtime = side.gateway.gateway._runtime
        assert all(upstream.capacity.taken == 0 for upstream in runtime.upstreams.values())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_express_lane_changes_nothing_but_the_cost(seed: int) -> None:
    assert "lanes" not in DEFAULTS
    assert await compare(seed, 200) >= _LEAST_SHARE


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3, 8))
async def test_express_lane_changes_nothing_but_the_cost_of_thousands(seed: int) -> None:
    assert await compare(seed, 1000) >= _LEAST_SHARE


async def test_lanes_copy_turns_the_express_lane_off() -> None:
    async with run_side("copy") as side:
        for _ in range(3):
            await side.warm()
        transfers = side.gateway.stats.routes["r"].transfers[Direction.DOWNLOAD]
        assert transfers.lanes["copy"] == 6

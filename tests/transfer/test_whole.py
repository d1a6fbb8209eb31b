"""A body that is passed on in one step is counted as a transfer of one chunk is."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import Outcome
from gateway.observe.stats import Direction, Histogram, Leg, RouteStats, TransferStats
from gateway.observe.waits import Waits
from gateway.transfer import TransferPolicy, WholeTransfer
from gateway.transfer.meter import Meter
from tests.clock import Clock

POLICY = TransferPolicy(Direction.DOWNLOAD, Leg.UPSTREAM_READ, Leg.DOWNSTREAM_WRITE, upstream="up")


def numbers(stats: TransferStats) -> dict[str, Any]:
    """Return everything that is counted of a direction."""
    values = {name: getattr(stats, name) for name in TransferStats.__slots__}
    return {
        name: (value.counts, value.total) if isinstance(value, Histogram) else value for name, value in values.items()
    }


@pytest.mark.parametrize("size", [0, 1, 64, 65, 1000, 65_536])
@pytest.mark.parametrize("seconds", [0.0, 0.25, 8.0])
def test_whole_body_is_counted_as_one_chunk(size: int, seconds: float) -> None:
    clock, whole, chunk = Clock(), RouteStats("r"), RouteStats("r")
    meter = Meter(POLICY, Waits(chunk, clock))
    meter.lane = "express"
    meter.start()
    meter.resume()
    if size:
        meter.count(size)
    clock.now += seconds
    meter.end(Outcome.COMPLETE)
    transfer = WholeTransfer(POLICY, whole, size, "express", started=clock.now - seconds, ended=clock.now)
    assert numbers(whole.transfers[Direction.DOWNLOAD]) == numbers(chunk.transfers[Direction.DOWNLOAD])
    assert (transfer.outcome, transfer.moved_bytes) == (Outcome.COMPLETE, size)

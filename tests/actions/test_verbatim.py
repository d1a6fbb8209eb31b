"""A verbatim body whose beginning is held for filters: sending it is watched like the rest."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from gateway.actions.verbatim import VerbatimBody
from gateway.errors import Fault, FaultKind
from gateway.observe.stats import Direction, Leg, RouteStats
from gateway.observe.waits import Waits
from gateway.transfer import Lanes, LegLimits, Timers, Transfer, TransferPolicy


class HeldSource:
    """A body of one chunk."""

    def __init__(self) -> None:
        self._chunks = [b"held"]

    async def read(self) -> bytes:
        return self._chunks.pop() if self._chunks else b""


class StuckSink:
    """The sink of an upstream that accepted the connection and does not read."""

    async def write(self, chunk: bytes) -> None:
        await asyncio.Event().wait()

    def acknowledged(self) -> int:
        return 4


async def test_upstream_that_does_not_read_the_held_beginning_is_a_fault() -> None:
    """The beginning was once sent without a timeout: no response, no log line, and a slot held forever."""
    policy = TransferPolicy(
        Direction.UPLOAD, Leg.DOWNSTREAM_READ, Leg.UPSTREAM_WRITE, write_limits=LegLimits(idle_seconds=0.05)
    )
    timers, source = Timers(), HeldSource()
    unused: Any = None
    with Transfer(policy, source, Waits(RouteStats("r")), timers, owner=unused, length=10) as transfer:
        body = VerbatimBody(unused, transfer, cast(Any, source), Lanes(is_raw_allowed=False), None)
        body._first += await transfer.pull_source()
        with pytest.raises(Fault) as caught:
            await body.send_to(cast(Any, StuckSink()))
    assert caught.value.kind is FaultKind.UPSTREAM_STUCK
    timers.close()

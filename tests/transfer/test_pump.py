"""A transfer and its watch: what ended a block is what the transfer remembers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.errors import Fault, FaultKind, Outcome
from gateway.observe.stats import Direction, Leg, RouteStats
from gateway.observe.waits import Waits
from gateway.transfer import LegLimits, Timers, Transfer, TransferPolicy

POLICY = TransferPolicy(Direction.UPLOAD, Leg.DOWNSTREAM_READ, Leg.UPSTREAM_WRITE, LegLimits(idle_seconds=0.04))


class LeavingClient:
    """The owner of a transfer whose client has left."""

    is_delivered = False

    def why_cancelled(self) -> Fault:
        return Fault(FaultKind.CLIENT_LEFT, "left")


def make_transfer(timers: Timers) -> Transfer:
    unused: Any = None
    return Transfer(POLICY, unused, Waits(RouteStats("r")), timers, owner=LeavingClient(), length=10)


async def test_stall_cancels_the_block_and_is_raised_as_its_fault() -> None:
    timers = Timers()
    with pytest.raises(Fault) as caught:
        with make_transfer(timers) as transfer, transfer.watched():
            await asyncio.Event().wait()
    assert caught.value.kind is FaultKind.CLIENT_IDLE
    assert (transfer.fault, transfer.outcome) == (caught.value, Outcome.CLIENT_SLOW)
    timers.close()


async def test_stall_after_the_client_left_does_not_change_how_the_transfer_ended() -> None:
    """A block that takes long to unwind was once said to have stalled, although the client had left before."""
    timers = Timers()
    started = asyncio.Event()
    transfer = make_transfer(timers)

    async def run() -> None:
        with transfer, transfer.watched():
            try:
                started.set()
                await asyncio.Event().wait()
            finally:
                # As a call in a thread that has to end before its descriptor is closed.
                watch_fired = asyncio.get_running_loop().create_future()
                timers.of(0.1).start("late", lambda: watch_fired.set_result(None))
                while not watch_fired.done():
                    try:
                        await asyncio.shield(watch_fired)
                    except asyncio.CancelledError:
                        continue

    task = asyncio.create_task(run(), name="exchange")
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (transfer.fault, transfer.outcome) == (None, Outcome.CLIENT_LEFT)
    timers.close()

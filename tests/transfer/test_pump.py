"""A transfer and its watch: what ended a block is what the transfer remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.config import Limits
from gateway.errors import Fault, FaultKind, Outcome
from gateway.multipart import PartInspector
from gateway.observe.stats import Direction, Leg, RouteStats
from gateway.observe.waits import Waits
from gateway.transfer import Filter, LegLimits, Timers, Transfer, TransferPolicy
from gateway.transfer.pump import pump

POLICY = TransferPolicy(Direction.UPLOAD, Leg.DOWNSTREAM_READ, Leg.UPSTREAM_WRITE, LegLimits(idle_seconds=0.04))


class LeavingClient:
    """The owner of a transfer whose client has left."""

    is_delivered = False

    def why_cancelled(self) -> Fault:
        return Fault(FaultKind.CLIENT_LEFT, "left")


class CountedChunk(bytes):
    """A chunk that counts how many of them there are."""

    alive = 0

    def __init__(self, _: bytes) -> None:
        CountedChunk.alive += 1

    def __del__(self) -> None:
        CountedChunk.alive -= 1


class CountingLane:
    """A lane that reads the beginning of a form and its data; `most` is how many chunks there were during a read."""

    def __init__(self, form: bytes, chunk_count: int) -> None:
        self._form = form
        self._left = chunk_count
        self.most = 0

    async def read(self) -> bytes:
        self.most = max(self.most, CountedChunk.alive)
        if not self._left:
            return b""
        self._left -= 1
        form, self._form = self._form, b"x" * 2**16
        return CountedChunk(form)

    async def write(self, chunk: bytes) -> None:
        assert CountedChunk.alive == 1

    def acknowledged(self) -> int:
        return 0


def make_transfer(timers: Timers, filters: Sequence[Filter] = (), length: int | None = 10) -> Transfer:
    unused: Any = None
    return Transfer(
        POLICY, unused, Waits(RouteStats("r")), timers, owner=LeavingClient(), length=length, filters=filters
    )


async def test_chunk_of_a_form_is_freed_before_the_next_is_read() -> None:
    """Two were held in turns: the second was in no cache, and a client that sends no more left one behind."""
    timers = Timers()
    inspector = PartInspector(b"x", Limits(), "r", lambda part: None)
    lane = CountingLane(b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n', 5)
    with pytest.raises(Fault), make_transfer(timers, [inspector], None) as transfer:
        await pump(transfer, lane)
    assert (lane.most, transfer.moved_bytes > 4 * 2**16) == (0, True)
    timers.close()


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

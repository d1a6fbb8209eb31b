"""Shares the event loop between bodies: all of them together work for a few milliseconds per iteration of the loop.

A body whose peers never make it wait would otherwise keep the loop to itself. Each loop over chunks or tokens asks
between two steps, whose work is bounded; a body that has to wait is continued in the order in which the bodies asked.
The first step of a body is not asked for, so a small exchange never waits here.

    if not turns.has_time():
        await turns.wait()

A body that may have large chunks asks its `Turn` in place of `Turns`. While its chunks are large it keeps its turn for
several iterations: what its peer sends meanwhile is still in the processor's cache when it is read. To change bodies
after each chunk cost 17 to 25 % more for eight uploads at once. A body of many small steps gives way after each: what
waits, waits for one of its steps only.

Rejected: `asyncio.sleep(0)` after a number of steps, or a time for each body: fifty bodies of costly steps would hold
the loop fifty times as long.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable
from typing import Final

#: Time for all bodies together per iteration of the loop, twice this where an interval begins within one. An exchange
#: needs about five iterations.
TURN_SECONDS: Final = 0.004
#: A body that moves this many bytes in one turn keeps it. 1 MiB received in chunks of one byte is 171 KiB of data.
KEEPING_BYTES: Final = 2**19
#: How long it keeps it; less where many wait: they all have their turns within a round.
_KEPT_SECONDS: Final = 0.016
_ROUND_SECONDS: Final = 0.064


class Turns:
    """The turns of all bodies of one gateway, on one loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: Until when bodies may work. An iteration is noticed by a callback, which costs another poll for events:
        #: one is scheduled per interval, not per iteration.
        self._until = 0.0
        #: Whether an iteration began since this interval did: then another interval may follow it.
        self._has_passed = True
        #: Continue the bodies that wait, in order.
        self._waiting: deque[Callable[[], None]] = deque()
        #: Were continued, but found no time left: the next to be continued.
        self._postponed: deque[Callable[[], None]] = deque()
        #: Tasks that were continued, and run in the next iteration: callbacks of events in this one come before them.
        self._due_count = 0
        #: How many to continue in one iteration.
        self._count = 1
        #: Whether a body found no time left since it was chosen.
        self._has_ended = False
        self._is_scheduled = False
        #: The body that keeps its turn, and until when.
        self._keeper: Turn | None = None
        self._kept_until = 0.0

    def has_time(self) -> bool:
        """Return whether a body may take another step now: there is time left, and no other body waits for it."""
        # In this order: that there was none left is recorded.
        return self.is_time_left() and not self._waiting

    def is_time_left(self) -> bool:
        """Return whether there is time in this iteration, though others may wait: for a body that has just waited."""
        now = self._clock()
        if now < self._until:
            return True
        if self._has_passed:
            self._until = now + TURN_SECONDS
            self._has_passed = False
            self._schedule()
            return True
        self._has_ended = True
        return False

    def has_time_for_event(self) -> bool:
        """Return the same for a callback of an event, which comes before the tasks that were continued already."""
        return not self._due_count and self.has_time()

    async def wait(self) -> None:
        """Wait for a turn, and take it."""
        await self._wait_in(self._waiting)

    async def _wait_in(self, queue: deque[Callable[[], None]]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            waiter: asyncio.Future[None] = loop.create_future()
            self._add(queue, functools.partial(self._continue, waiter))
            try:
                await waiter
            finally:
                if not waiter.done():
                    # The coroutine is closed: it is passed over in its turn.
                    waiter.cancel()
                elif not waiter.cancelled():
                    self._due_count -= 1
            if self.is_time_left():
                return
            queue = self._postponed

    def call(self, step: Callable[[], None]) -> None:
        """Call `step` when there is time: for protocols, which cannot wait."""
        self._add(self._waiting, step)

    def _add(self, queue: deque[Callable[[], None]], continue_body: Callable[[], None]) -> None:
        queue.append(continue_body)
        self._schedule()

    def _continue(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)
            self._due_count += 1

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._begin_iteration)

    def _begin_iteration(self) -> None:
        """Continue as many bodies as there was time for last: more if time was left, fewer if not."""
        self._count = max(1, self._count // 2) if self._has_ended else self._count * 2
        if self._has_ended or self._waiting or self._postponed:
            self._until = 0.0
        self._has_passed = True
        self._has_ended = self._is_scheduled = False
        waiting, postponed = self._waiting, self._postponed
        while postponed:
            waiting.appendleft(postponed.pop())
        self._count = min(self._count, len(waiting) or 1)
        try:
            for _ in range(min(self._count, len(waiting))):
                # A body that waits in a task works in the next iteration, a protocol at once.
                waiting.popleft()()
                if self._until and not self.is_time_left():
                    break
        finally:
            # Also where a protocol failed: the others wait.
            if waiting:
                self._schedule()


class Turn:
    """The turn of one body, which has moved `moved_bytes` so far."""

    __slots__ = ("_began_bytes", "_turns")

    def __init__(self, turns: Turns, moved_bytes: int) -> None:
        self._turns = turns
        #: Moved before this turn.
        self._began_bytes = moved_bytes

    def has_time(self) -> bool:
        """Return whether the body may take another step now, see `Turns.has_time`."""
        turns = self._turns
        return turns.is_time_left() and (not turns._waiting or self._is_kept())

    async def wait(self, moved_bytes: int) -> None:
        """Wait until the body may take another step."""
        turns = self._turns
        is_large = moved_bytes - self._began_bytes >= KEEPING_BYTES
        self._began_bytes = moved_bytes
        if is_large and self._is_kept():
            await turns._wait_in(turns._postponed)
            return
        await turns.wait()
        if is_large:
            turns._keeper = self
            turns._kept_until = turns._clock() + min(_KEPT_SECONDS, _ROUND_SECONDS / (len(turns._waiting) + 1))
        elif turns._keeper is self:
            turns._keeper = None

    def _is_kept(self) -> bool:
        return self._turns._keeper is self and self._turns._clock() < self._turns._kept_until

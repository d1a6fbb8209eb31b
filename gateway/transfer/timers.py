"""Timers of equal length, served by one timer of the loop.

Nearly every timer is stopped before it fires: each exchange waits for a response and checks its transfers, with the
same few lengths from the config. A timer of asyncio is two objects in a heap, compared, pushed and removed later.
Timers of equal length fire in the order in which they were started, so a dict is their queue: starting or stopping one
is one dict operation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Final

from gateway.transfer.turns import Turns

#: A timer of the loop may fire this much early.
_RESOLUTION_SECONDS: Final = 0.001


class Timers:
    """All timers of one gateway, by their length in seconds. Close them after use."""

    def __init__(self) -> None:
        self._queues: dict[float, TimerQueue] = {}
        #: The other thing that all exchanges of one loop share.
        self.turns = Turns()

    def of(self, seconds: float) -> TimerQueue:
        """Return the timers of one length. Each length is kept: there must be no more of them than a config has."""
        queue = self._queues.get(seconds)
        if queue is None:
            queue = self._queues[seconds] = TimerQueue(seconds)
        return queue

    def close(self) -> None:
        """Stop them all."""
        for queue in self._queues.values():
            queue.close()


class TimerQueue:
    """Timers of one length. Each fires once, and may be started again when it fires."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        #: By key: when it fires, on the monotonic clock, and what it calls. In order: the first entry fires next.
        self._waiting: dict[Hashable, tuple[float, Callable[[], object]]] = {}
        self._handle: asyncio.TimerHandle | None = None

    def start(self, key: Hashable, callback: Callable[[], object]) -> None:
        """Start the timer of a key that has none running."""
        self._waiting[key] = (time.monotonic() + self._seconds, callback)
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(self._seconds, self._fire)

    def stop(self, key: Hashable) -> None:
        """Stop the timer of a key, if it runs."""
        self._waiting.pop(key, None)

    def close(self) -> None:
        """Stop them all."""
        self._waiting.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        """Fire the timers that are due, and wait for the next; at most one timer of the loop runs."""
        now = time.monotonic()
        try:
            while (first := self._first()) is not None and self._waiting[first][0] <= now + _RESOLUTION_SECONDS:
                self._waiting.pop(first)[1]()
        finally:
            self._handle = None
            if (first := self._first()) is not None:
                seconds = max(0.0, self._waiting[first][0] - now)
                self._handle = asyncio.get_running_loop().call_later(seconds, self._fire)

    def _first(self) -> Hashable | None:
        return next(iter(self._waiting), None)

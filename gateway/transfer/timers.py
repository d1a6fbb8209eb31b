"""Timers of equal length behind one timer of the loop.

Nearly every timer here is stopped before it rings: each exchange waits for an answer and watches its transfers, with
the same few lengths from the config. A timer of asyncio's is two objects in a heap, compared, pushed and swept out
later. Those of equal length ring in the order in which they were started: a dict is their queue, and starting or
stopping one is an entry.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Final

#: A timer of the loop may ring this much early.
_RESOLUTION_SECONDS: Final = 0.001


class Timers:
    """All timers of one gateway, by their length. `close` them."""

    def __init__(self) -> None:
        self._queues: dict[float, TimerQueue] = {}

    def of(self, seconds: float) -> TimerQueue:
        """Return the timers of a length. There must not be more lengths than a config has."""
        queue = self._queues.get(seconds)
        if queue is None:
            queue = self._queues[seconds] = TimerQueue(seconds)
        return queue

    def close(self) -> None:
        """Stop them all."""
        for queue in self._queues.values():
            queue.close()


class TimerQueue:
    """Timers of one length. Each rings once, and may be started again while it rings."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        #: When they ring, on the monotonic clock; the first of them is the next.
        self._waiting: dict[Hashable, tuple[float, Callable[[], object]]] = {}
        self._handle: asyncio.TimerHandle | None = None

    def start(self, key: Hashable, ring: Callable[[], object]) -> None:
        """Start the timer of a key that has none running."""
        self._waiting[key] = (time.monotonic() + self._seconds, ring)
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(self._seconds, self._ring)

    def stop(self, key: Hashable) -> None:
        """Stop the timer of a key, if it runs."""
        self._waiting.pop(key, None)

    def close(self) -> None:
        """Stop them all."""
        self._waiting.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _ring(self) -> None:
        """Ring those whose time has come, and wait for the next; never more than one timer of the loop runs."""
        now = time.monotonic()
        try:
            while (first := self._first()) is not None and self._waiting[first][0] <= now + _RESOLUTION_SECONDS:
                self._waiting.pop(first)[1]()
        finally:
            self._handle = None
            if (first := self._first()) is not None:
                seconds = max(0.0, self._waiting[first][0] - now)
                self._handle = asyncio.get_running_loop().call_later(seconds, self._ring)

    def _first(self) -> Hashable | None:
        return next(iter(self._waiting), None)

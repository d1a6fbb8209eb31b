"""The filter `throttle`: limit the rate of uploads, for a whole route or for each client address."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

from gateway.config.filters import ThrottleScope
from gateway.filters.file import FileHead, Observer
from gateway.http.headers import Header

#: Burst allowance, as time at the full rate: without it the size of chunks would reduce the rate.
_BURST_SECONDS: Final = 0.25
#: Clients with a bucket of their own; beyond this, buckets of clients that need not wait are removed.
_MAX_CLIENTS: Final = 10_000


class Bucket:
    """A token bucket in bytes per second; requests are granted in the order of the calls.

    Only what was granted is charged: a client that leaves while it waits costs those after it nothing.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        #: Monotonic time at which all granted bytes are sent at the rate.
        self.empty_at = 0.0
        #: Requests that wait, in order, with their bytes. A timer runs for the first one.
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def is_idle(self, now: float) -> bool:
        """Return whether a new bucket would grant the same."""
        return not self._waiting and self.empty_at <= now

    def grants_at(self, size: int, now: float) -> float:
        """Return when `size` bytes are granted if no others wait. `now` is monotonic time."""
        return max(self.empty_at, now - _BURST_SECONDS) + size / self._rate

    async def take(self, size: int) -> None:
        """Wait until `size` bytes are granted. Cancelling gives up the place in the queue."""
        now = time.monotonic()
        if not self._waiting and (at := self.grants_at(size, now)) <= now:
            self.empty_at = at
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = size
        if len(self._waiting) == 1:
            self._start_timer()
        try:
            await waiter
        finally:
            if waiter in self._waiting:
                self._leave(waiter)

    def _start_timer(self) -> None:
        """Wait until the first request is granted."""
        size = next(iter(self._waiting.values()), None)
        if size is not None:
            now = time.monotonic()
            at = self.grants_at(size, now)
            self._timer = asyncio.get_running_loop().call_later(max(0.0, at - now), self._grant, at)

    def _grant(self, at: float) -> None:
        waiter = next(iter(self._waiting))
        del self._waiting[waiter]
        self.empty_at = at
        if not waiter.done():
            waiter.set_result(None)
        self._start_timer()

    def _leave(self, waiter: asyncio.Future[None]) -> None:
        is_first = waiter is next(iter(self._waiting))
        del self._waiting[waiter]
        if is_first and self._timer is not None:
            self._timer.cancel()
            self._start_timer()


class ThrottleFactory:
    """Creates the throttle observers of a route; `rate` is in bytes per second."""

    first_bytes = 0

    def __init__(self, rate: float, per: ThrottleScope) -> None:
        self._rate = rate
        self._per = per
        self._buckets: dict[str, Bucket] = {}

    def __call__(self, file: FileHead) -> Observer:
        """Return the observer of a file."""
        key = file.client if self._per == "client" else ""
        if key not in self._buckets and len(self._buckets) >= _MAX_CLIENTS:
            now = time.monotonic()
            self._buckets = {client: bucket for client, bucket in self._buckets.items() if not bucket.is_idle(now)}
        return _Throttle(self._buckets.setdefault(key, Bucket(self._rate)))


class _Throttle:
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def feed_data(self, chunk: bytes) -> None:
        """Wait until the rate allows the chunk."""
        await self._bucket.take(len(chunk))

    async def finish(self) -> None:
        """Do nothing: no chunk is held."""

    def close(self) -> None:
        """Do nothing: there are no resources."""

    def facts(self) -> Mapping[str, str | int]:
        """Return no facts."""
        return {}

    def response_headers(self) -> Sequence[Header]:
        """Return no headers."""
        return ()

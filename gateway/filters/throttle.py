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
    """A token bucket in bytes per second; requests are granted in the order of the calls."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        #: Monotonic time at which all granted bytes are sent at the rate.
        self.empty_at = 0.0

    def grant(self, size: int, now: float) -> float:
        """Grant `size` bytes; return the seconds to wait before they are passed on. `now` is monotonic time."""
        self.empty_at = max(self.empty_at, now - _BURST_SECONDS) + size / self._rate
        return max(0.0, self.empty_at - now)


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
            self._buckets = {client: bucket for client, bucket in self._buckets.items() if bucket.empty_at > now}
        return _Throttle(self._buckets.setdefault(key, Bucket(self._rate)))


class _Throttle:
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def feed_data(self, chunk: bytes) -> None:
        """Wait until the rate allows the chunk."""
        seconds = self._bucket.grant(len(chunk), time.monotonic())
        if seconds:
            await asyncio.sleep(seconds)

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

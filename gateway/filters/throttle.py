"""throttle: so many bytes a second, for a route altogether or for each client of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

from gateway.config.filters import ThrottleScope
from gateway.filters.file import FileHead, Observer
from gateway.http.headers import Header

#: A burst of so many seconds' worth passes at once: the granularity of chunks must not decide the rate.
_BURST_SECONDS: Final = 0.25
#: Clients remembered; those that were idle for a burst owe nothing and may be forgotten.
_MAX_CLIENTS: Final = 10_000


class Bucket:
    """A rate shared by whoever takes from it, in the order of asking."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        #: When everything granted so far will have flowed at the rate, on the monotonic clock.
        self.empty_at = 0.0

    def grant(self, size: int, now: float) -> float:
        """Take so many bytes; return the seconds to wait before they may go on."""
        self.empty_at = max(self.empty_at, now - _BURST_SECONDS) + size / self._rate
        return max(0.0, self.empty_at - now)


class ThrottleFactory:
    """Holds files back so that they flow at a rate in bytes per second."""

    first_bytes = 0

    def __init__(self, rate: float, per: ThrottleScope) -> None:
        self._rate = rate
        self._per = per
        self._buckets: dict[str, Bucket] = {}

    def __call__(self, file: FileHead) -> Observer:
        """Return the filter of a file."""
        key = file.client if self._per == "client" else ""
        if key not in self._buckets and len(self._buckets) >= _MAX_CLIENTS:
            now = time.monotonic()
            self._buckets = {client: bucket for client, bucket in self._buckets.items() if bucket.empty_at > now}
        return _Throttle(self._buckets.setdefault(key, Bucket(self._rate)))


class _Throttle:
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def feed_data(self, chunk: bytes) -> None:
        """Return when the chunk may flow."""
        seconds = self._bucket.grant(len(chunk), time.monotonic())
        if seconds:
            await asyncio.sleep(seconds)

    async def finish(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""

    def facts(self) -> Mapping[str, str | int]:
        """Nothing to tell."""
        return {}

    def response_headers(self) -> Sequence[Header]:
        """Nothing for the client."""
        return ()

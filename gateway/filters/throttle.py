"""The filter `throttle`: limit the rate of uploads, for a whole route or for each client address."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from gateway.config.filters import ThrottleScope
from gateway.filters.file import FileHead, Observer
from gateway.http.headers import Header
from gateway.sharing import SharedLimits

#: Burst allowance, as time at the full rate: without it the size of chunks would reduce the rate.
_BURST_SECONDS: Final = 0.25
#: What a worker takes at once of a rate that it shares with others, as time at the full rate: 20 messages a second.
_LEASE_SECONDS: Final = 0.05
#: Clients with a bucket of their own; beyond this, buckets of clients that need not wait are removed.
_MAX_CLIENTS: Final = 10_000


class Rate(Protocol):
    """What all files of a route, or of one of its clients, take their bytes from."""

    def is_idle(self, now: float) -> bool:
        """Return whether a new one would grant the same."""
        ...

    async def take(self, size: int) -> None:
        """Wait until `size` bytes are granted. Cancelling gives up the place in the queue."""
        ...


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
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._leave(waiter)
            else:
                # Granted just before.
                self.give_back(size)
            raise

    def give_back(self, size: int) -> None:
        """Take back bytes that were granted and not used: the first that waits is granted them."""
        self.empty_at -= size / self._rate
        self._restart_timer()

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
        if is_first:
            self._restart_timer()

    def _restart_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._start_timer()


class LeasedRate:
    """A Rate that several workers share: bytes are taken from the supervisor's bucket, some at once.

    A worker that is alone gets the whole rate: the bucket serves requests in order of arrival, from any worker.
    """

    def __init__(self, limit: str, rate: float, limits: SharedLimits) -> None:
        self._limit = limit
        self._rate = rate
        self._limits = limits
        self._least = int(rate * _LEASE_SECONDS)
        #: Bytes that are granted and not used yet.
        self._bytes = 0
        #: Requests that wait, in order, with their bytes.
        self._waiting: dict[asyncio.Future[None], int] = {}
        #: Of the message to the supervisor that has no answer yet.
        self._number: int | None = None
        self._is_alone = False

    def is_idle(self, now: float) -> bool:
        """Return whether a new one would grant the same, but for the bytes it has."""
        del now
        return not self._waiting and self._number is None

    async def take(self, size: int) -> None:
        """Wait until `size` bytes are granted. Cancelling gives up the place in the queue."""
        if not self._waiting and self._bytes >= size:
            self._bytes -= size
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = size
        self._serve()
        try:
            await waiter
        except asyncio.CancelledError:
            self._waiting.pop(waiter, None)
            if not waiter.cancelled():
                # Granted just before.
                self._bytes += size
            self._serve()
            raise

    def _serve(self) -> None:
        """Grant what can be granted, and ask for more, or for no more."""
        while self._waiting and (self._is_alone or self._bytes >= next(iter(self._waiting.values()))):
            waiter, size = next(iter(self._waiting.items()))
            del self._waiting[waiter]
            if not waiter.done():
                self._bytes = max(0, self._bytes - size)
                waiter.set_result(None)
        if self._waiting and self._number is None:
            missing = next(iter(self._waiting.values())) - self._bytes
            self._number = self._limits.ask_bytes(self._limit, max(missing, self._least), self._rate, self._receive)
        elif not self._waiting and self._number is not None:
            self._limits.withdraw_bytes(self._limit, self._number)
            self._number = None

    def _receive(self, size: int | None) -> None:
        """Take in granted bytes. None: the supervisor has ended, and so will this worker; what it has to do is done."""
        self._number = None
        self._is_alone = size is None
        self._bytes += size or 0
        self._serve()


class ThrottleFactory:
    """Creates the throttle observers of a route; `rate` is in bytes per second.

    `limits` are those that a worker shares with others; `limit` is the name of this one.
    """

    first_bytes = 0

    def __init__(
        self, rate: float, per: ThrottleScope, limit: str = "throttle", limits: SharedLimits | None = None
    ) -> None:
        self._per = per
        self._rates: dict[str, Rate] = {}
        self._make: Callable[[str], Rate] = lambda client: Bucket(rate)
        if limits is not None:
            self._make = lambda client: LeasedRate(f"{limit} {client}", rate, limits)

    def __call__(self, file: FileHead) -> Observer:
        """Return the observer of a file."""
        key = file.client if self._per == "client" else ""
        if key not in self._rates:
            if len(self._rates) >= _MAX_CLIENTS:
                now = time.monotonic()
                self._rates = {client: rate for client, rate in self._rates.items() if not rate.is_idle(now)}
            self._rates[key] = self._make(key)
        return _Throttle(self._rates[key])


class _Throttle:
    def __init__(self, rate: Rate) -> None:
        self._rate = rate

    async def feed_data(self, chunk: bytes) -> None:
        """Wait until the rate allows the chunk."""
        await self._rate.take(len(chunk))

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

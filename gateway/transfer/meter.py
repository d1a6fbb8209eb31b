"""Counts the bytes of one transfer and charges its seconds to its legs. Synchronous; the clock is the exchange's.

    call            valid           effect
    start           once            the transfer counts as in flight
    resume          after start     its seconds are charged to its legs from now on, and no more to the exchange's
    wait_on(leg)    after resume    seconds since the last call are charged to the leg waited on; `leg` is waited on now
    pause           after resume    its seconds are charged until now; the exchange charges its own again
    count(size)     after resume    a chunk of `size` bytes (at least 1) is on its way to the sink
    end(outcome)    any time        the transfer has ended; further calls change nothing

A chunk's throughput is its size over the seconds from the end of the chunk before it to its own end; a chunk has ended
when the read leg is waited on again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import Outcome
from gateway.observe.stats import Leg
from gateway.observe.waits import Waits
from gateway.transfer.policy import TransferPolicy


class Meter:
    """Bytes, seconds and outcome of one transfer, also added to the statistics of its route as they happen."""

    __slots__ = (
        "_charged_until",
        "_chunk_bytes",
        "_chunk_started",
        "_route_seconds",
        "_stats",
        "_waits",
        "clock",
        "lane",
        "leg_seconds",
        "moved_bytes",
        "outcome",
        "policy",
        "started",
        "waiting_on",
        "waiting_since",
    )

    def __init__(self, policy: TransferPolicy, waits: Waits) -> None:
        self.policy = policy
        self.clock = waits.clock
        self._waits = waits
        self._stats = waits.route.transfers[policy.direction]
        self._route_seconds = waits.route.waits
        self.outcome: Outcome | None = None
        #: How most of the bytes are moved; "copy" unless another lane takes over.
        self.lane = "copy"
        #: Bytes handed to the sink.
        self.moved_bytes = 0
        #: Seconds of the exchange charged to each leg so far; the wait under way may not be among them. The transfers
        #: of an exchange have no leg in common, except that of filters, which only uploads have.
        self.leg_seconds = waits.leg_seconds
        #: The leg waited on now, and since when.
        self.waiting_on = policy.read_leg
        self.started = self.waiting_since = self._charged_until = self._chunk_started = self.clock()
        #: Bytes of the chunk that is on its way to the sink; 0 between chunks.
        self._chunk_bytes = 0

    @property
    def filter_seconds(self) -> float:
        """Seconds charged to filters so far."""
        return self.leg_seconds.get(Leg.FILTER, 0.0)

    def start(self) -> None:
        """Count the transfer as in flight."""
        self._stats.in_flight += 1
        self.started = self.clock()

    def resume(self) -> None:
        """Charge the seconds from now on, in place of the exchange."""
        now = self.waiting_since = self._charged_until = self._chunk_started = self.clock()
        self._waits.begin(self, now)

    def pause(self) -> None:
        """Charge the seconds until now; what follows is the exchange's."""
        self.wait_on(self.waiting_on)
        self._waits.end(self, self.waiting_since)

    def wait_on(self, leg: Leg) -> None:
        """Charge the seconds since the last call to the leg waited on, and wait on `leg` from now on."""
        now = self.clock()
        # `Waits.add` without the call: twice per chunk.
        seconds, previous, spent = now - self._charged_until, self.waiting_on, self.leg_seconds
        spent[previous] = spent.get(previous, 0.0) + seconds
        self._route_seconds[previous] += seconds
        self.waiting_since = self._charged_until = now
        self.waiting_on = leg
        if self._chunk_bytes and leg is self.policy.read_leg:
            self._end_chunk(now)

    def seconds_on(self, leg: Leg, now: float) -> float:
        """Return the seconds that a leg was waited on until now, a wait under way included."""
        return self.leg_seconds.get(leg, 0.0) + (now - self._charged_until if self.waiting_on is leg else 0.0)

    def charge(self, now: float) -> None:
        """Charge the seconds until now to the leg waited on; the wait goes on."""
        seconds = now - self._charged_until
        self._charged_until = now
        self._waits.add(self.waiting_on, seconds)

    @contextmanager
    def filtering(self) -> Iterator[None]:
        """Charge the block to filters, except for pulls within it; what comes after it to the write leg."""
        self.wait_on(Leg.FILTER)
        try:
            yield
        finally:
            self.wait_on(self.policy.write_leg)

    def resume_filtering(self) -> None:
        """Charge to filters again, after a pull within `filtering`."""
        self.wait_on(Leg.FILTER)

    def count(self, size: int) -> None:
        """Count a chunk of `size` bytes, at least 1."""
        self.moved_bytes += size
        self._chunk_bytes = size
        stats = self._stats
        stats.moved[self.policy.upstream] += size
        stats.chunk_sizes.observe(size)

    def end(self, outcome: Outcome) -> None:
        """End the transfer. Only the first call counts."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        stats = self._stats
        stats.in_flight -= 1
        stats.outcomes[outcome] += 1
        stats.lanes[self.lane] += 1
        stats.sizes.observe(self.moved_bytes)
        now = self.clock()
        if self._chunk_bytes:
            self._end_chunk(now)
        if self.moved_bytes and now > self.started:
            stats.rates.observe(self.moved_bytes / (now - self.started))

    def _end_chunk(self, now: float) -> None:
        self._stats.chunk_rates.observe(self._chunk_bytes / ((now - self._chunk_started) or 1e-9))
        self._chunk_bytes = 0
        self._chunk_started = now

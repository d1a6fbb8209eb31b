"""A body that is passed on in one step, at its beginning: nothing of it is waited for, filtered or watched any more.

It is counted as a `Transfer` of one chunk is, for a quarter of the cost: small exchanges have a body or two of these.
Where the other side has yet to take it, which is waited for and watched, it is a Transfer.
"""

from __future__ import annotations

from bisect import bisect_left
from types import TracebackType
from typing import Final, Self

from gateway.errors import Outcome
from gateway.observe.stats import CHUNK_BOUNDS, RATE_BOUNDS, SIZE_BOUNDS
from gateway.observe.waits import Waits
from gateway.transfer.policy import TransferPolicy

#: The shortest time that a rate is computed from.
_LEAST_SECONDS: Final = 1e-9


class WholeTransfer:
    """What `Transfer` is of such a body, from its one step to its end: at `end`, or on leaving it as a block."""

    __slots__ = ("_stats", "_waits", "lane", "moved_bytes", "outcome", "started")

    #: Nothing can break it any more, and nothing is missing.
    fault: Final = None
    is_whole: Final = True
    remaining_bytes: Final = 0

    def __init__(self, policy: TransferPolicy, waits: Waits, size: int, lane: str) -> None:
        """Count a body of `size` bytes. It began when the exchange began to wait on its leg."""
        self._waits = waits
        self.started = waits.own_since
        #: How its bytes were moved.
        self.lane = lane
        self.moved_bytes = size
        #: How it ended, None before its end.
        self.outcome: Outcome | None = None
        stats = self._stats = waits.route.transfers[policy.direction]
        stats.in_flight += 1
        if size:
            stats.moved[policy.upstream] += size
            # As in `end`, `Histogram.observe` without the call.
            chunk_sizes = stats.chunk_sizes
            chunk_sizes.counts[bisect_left(CHUNK_BOUNDS, size)] += 1
            chunk_sizes.total += size

    @property
    def length(self) -> int:
        """Bytes of the whole body."""
        return self.moved_bytes

    def end(self, outcome: Outcome) -> None:
        """End it. Only the first call counts."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        stats, size = self._stats, self.moved_bytes
        stats.in_flight -= 1
        stats.outcomes[outcome] += 1
        stats.lanes[self.lane] += 1
        sizes = stats.sizes
        sizes.counts[bisect_left(SIZE_BOUNDS, size)] += 1
        sizes.total += size
        if size:
            # Its rate is that of its only chunk.
            seconds = self._waits.clock() - self.started
            rate = size / (seconds or _LEAST_SECONDS)
            bucket = bisect_left(RATE_BOUNDS, rate)
            chunk_rates = stats.chunk_rates
            chunk_rates.counts[bucket] += 1
            chunk_rates.total += rate
            if seconds > 0:
                rates = stats.rates
                rates.counts[bucket] += 1
                rates.total += rate

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End: it is complete, whatever the block raised."""
        self.end(Outcome.COMPLETE)

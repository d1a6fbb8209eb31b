"""A body that was passed on in one step: nothing of it is waited for, filtered or watched.

It is counted as a `Transfer` of one chunk is, begun and ended at once, for a fifth of the cost: small exchanges have a
body or two of these. Where the other side has yet to take it, which is waited for and watched, it is a Transfer.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from gateway.errors import Outcome
from gateway.observe.stats import CHUNK_BOUNDS, RATE_BOUNDS, SIZE_BOUNDS, RouteStats
from gateway.transfer.policy import TransferPolicy

#: The shortest time that a rate is computed from.
_LEAST_SECONDS: Final = 1e-9


class WholeTransfer:
    """What `Transfer` is of such a body after its end."""

    __slots__ = ("lane", "moved_bytes", "started")

    outcome: Final = Outcome.COMPLETE
    #: Nothing can break it any more, and nothing is missing.
    fault: Final = None
    is_whole: Final = True
    remaining_bytes: Final = 0

    def __init__(
        self, policy: TransferPolicy, route: RouteStats, size: int, lane: str, *, started: float, ended: float
    ) -> None:
        """Count a body of `size` bytes; times are on the monotonic clock."""
        self.started = started
        #: How its bytes were moved.
        self.lane = lane
        self.moved_bytes = size
        stats = route.transfers[policy.direction]
        stats.outcomes[Outcome.COMPLETE] += 1
        stats.lanes[lane] += 1
        # `Histogram.observe` without the calls.
        sizes = stats.sizes
        sizes.counts[bisect_left(SIZE_BOUNDS, size)] += 1
        sizes.total += size
        if size:
            stats.moved[policy.upstream] += size
            chunk_sizes, chunk_rates = stats.chunk_sizes, stats.chunk_rates
            chunk_sizes.counts[bisect_left(CHUNK_BOUNDS, size)] += 1
            chunk_sizes.total += size
            # Its rate is that of its only chunk.
            seconds = ended - started
            rate = size / (seconds or _LEAST_SECONDS)
            bucket = bisect_left(RATE_BOUNDS, rate)
            chunk_rates.counts[bucket] += 1
            chunk_rates.total += rate
            if seconds > 0:
                rates = stats.rates
                rates.counts[bucket] += 1
                rates.total += rate

    @property
    def length(self) -> int:
        """Bytes of the whole body."""
        return self.moved_bytes

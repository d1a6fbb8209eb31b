"""Counting in plain numbers, chunk by chunk. `metrics` spells them for Prometheus; nothing here knows it.

One `RouteStats` per route is made with the config, with everything in it that a chunk touches, so that counting a
chunk is a handful of additions. All of it belongs to the event loop's thread; another thread may read it, and sees
numbers at most one chunk apart.
"""

from __future__ import annotations

import enum
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.errors import Outcome


class Direction(enum.StrEnum):
    """Which way a transfer goes."""

    UPLOAD = "upload"
    DOWNLOAD = "download"


class Leg(enum.StrEnum):
    """Who is being waited for."""

    DOWNSTREAM_READ = "downstream_read"
    UPSTREAM_WRITE = "upstream_write"
    UPSTREAM_READ = "upstream_read"
    DOWNSTREAM_WRITE = "downstream_write"
    DISK_WRITE = "disk_write"
    DISK_READ = "disk_read"
    #: Ourselves: a filter that hashes, scans or holds a rate.
    FILTER = "filter"


class Histogram:
    """Counts per bucket and a sum. `bounds` are upper bounds, ascending; one bucket more takes the rest."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


#: Powers of four from 1 KiB: 64 GiB is bucket 13, 1 TiB the last.
SIZE_BOUNDS: Final = tuple(float(2**exponent) for exponent in range(10, 41, 2))
#: Chunks are at most a few hundred KiB on the copy lane, a pipe's MiB on others.
CHUNK_BOUNDS: Final = tuple(float(2**exponent) for exponent in range(6, 23, 2))
#: From a trickle of 1 KiB/s to memory speed.
RATE_BOUNDS: Final = tuple(float(2**exponent) for exponent in range(10, 35, 2))
#: Up to an hour: large files on slow lines are healthy.
SECONDS_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class TransferStats:
    """What the transfers of one route in one direction add up to."""

    __slots__ = ("bytes_moved", "chunk_rates", "chunk_sizes", "in_flight", "lanes", "outcomes", "rates", "sizes")

    def __init__(self) -> None:
        self.bytes_moved = 0
        self.in_flight = 0
        self.outcomes: Counter[Outcome] = Counter()
        #: Transfers by how most of their bytes were moved.
        self.lanes: Counter[str] = Counter()
        self.chunk_sizes = Histogram(CHUNK_BOUNDS)
        self.chunk_rates = Histogram(RATE_BOUNDS)
        self.rates = Histogram(RATE_BOUNDS)
        self.sizes = Histogram(SIZE_BOUNDS)


@dataclass(slots=True)
class RouteStats:
    """What happened on one route."""

    route: str
    #: The upstream its bytes go to or come from, "" where there is none.
    upstream: str = ""
    in_flight: int = 0
    #: By method and status.
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    durations: Histogram = field(default_factory=lambda: Histogram(SECONDS_BOUNDS))
    first_bytes: Histogram = field(default_factory=lambda: Histogram(SECONDS_BOUNDS))
    transfers: dict[Direction, TransferStats] = field(
        default_factory=lambda: {direction: TransferStats() for direction in Direction}
    )
    waits: dict[Leg, float] = field(default_factory=lambda: dict.fromkeys(Leg, 0.0))
    #: By kind of part.
    parts: Counter[str] = field(default_factory=Counter)
    part_sizes: Histogram = field(default_factory=lambda: Histogram(SIZE_BOUNDS))
    #: Mirrored requests by how they ended, and their bytes: sent, dropped.
    mirrors: Counter[Outcome] = field(default_factory=Counter)
    mirror_bytes: Counter[str] = field(default_factory=Counter)
    #: By how it ended.
    part_outcomes: Counter[Outcome] = field(default_factory=Counter)

    def count_part(self, kind: str, size_bytes: int, outcome: Outcome) -> None:
        """Count one part of a form at its end."""
        self.parts[kind] += 1
        self.part_outcomes[outcome] += 1
        self.part_sizes.observe(size_bytes)


@dataclass(slots=True)
class UpstreamStats:
    """What happened with one upstream, over all routes."""

    upstream: str
    queue_length: int = 0
    #: By endpoint, 1 or 0.
    endpoints_up: dict[str, bool] = field(default_factory=dict)
    #: By reason.
    retries: Counter[str] = field(default_factory=Counter)


class Stats:
    """All counts of one gateway. Routes and upstreams are known before the first byte flows."""

    #: Requests that no route took: malformed, unknown path, refused while stopping.
    NO_ROUTE: Final = ""

    def __init__(self, routes: Iterable[tuple[str, str]], upstreams: Iterable[str]) -> None:
        self.routes = {self.NO_ROUTE: RouteStats(self.NO_ROUTE)}
        self.upstreams: dict[str, UpstreamStats] = {}
        #: Reloads by result, and when a config was last taken into use (seconds since 1970).
        self.reloads = Counter({"success": 0, "failure": 0})
        self.configured_at = 0.0
        self.adopt(routes, upstreams)

    def adopt(self, routes: Iterable[tuple[str, str]], upstreams: Iterable[str]) -> None:
        """Count for these routes and their upstreams from now on. A route that goes elsewhere counts from zero.

        Routes that are gone stay: exchanges may still be under way there.
        """
        for name, upstream in routes:
            if name not in self.routes or self.routes[name].upstream != upstream:
                self.routes[name] = RouteStats(name, upstream)
        self.upstreams = {name: self.upstreams.get(name) or UpstreamStats(name) for name in upstreams}
        self.configured_at = time.time()  # noqa: TID251 (the time of day)


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def method_label(method: str) -> str:
    """Return the method as a label: a client must not be able to invent new ones."""
    return method if method in _METHODS else "other"

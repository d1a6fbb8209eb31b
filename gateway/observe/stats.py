"""Statistics as plain numbers, updated with every chunk. `prometheus` exposes them, `merge` adds those of workers.

Each route has one `RouteStats`, created with the config, which has all counters that a chunk changes: counting a
chunk takes a few additions and no lookup of labels. Only the event loop's thread writes. Other threads may read
without a lock; the numbers they see may differ by one chunk. A new field needs its place in `snapshot`, too: a test
finds those that have none.
"""

from __future__ import annotations

import enum
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from gateway.errors import Blame, FaultKind, Outcome

#: A label, or several.
K = TypeVar("K")


class Direction(enum.StrEnum):
    """The direction of a transfer: upload is from the client, download is to the client."""

    UPLOAD = "upload"
    DOWNLOAD = "download"


class Leg(enum.StrEnum):
    """What an exchange waits for: one side of a transfer, or a step of the request."""

    DOWNSTREAM_READ = "downstream_read"
    UPSTREAM_WRITE = "upstream_write"
    UPSTREAM_READ = "upstream_read"
    DOWNSTREAM_WRITE = "downstream_write"
    DISK_WRITE = "disk_write"
    DISK_READ = "disk_read"
    #: A filter that hashes, scans or limits the rate.
    FILTER = "filter"
    #: A free slot of the upstream.
    QUEUE = "queue"
    #: A connection to an endpoint: name lookup, TCP, TLS.
    CONNECT = "connect"
    #: The response head, once the request is sent: the service's own time.
    UPSTREAM_RESPONSE = "upstream_response"


class Counts(dict[K, int]):
    """Counters by label, each 0 until it is first counted.

    Not collections.Counter: setting an item of it takes twice as long, since it has a `__delitem__` in Python.
    """

    __slots__ = ()

    def __missing__(self, key: K) -> int:
        """Return 0, as for every label that was not counted."""
        return 0

    def total(self) -> int:
        """Return the sum of all."""
        return sum(self.values())


class Histogram:
    """A histogram. `bounds` are ascending, inclusive upper bounds; `counts` has one more bucket for larger values."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


# Bounds have the type of the values: comparing an integer with a fraction takes longer.
#: Powers of four, from 1 KiB to 1 TiB.
SIZE_BOUNDS: Final = tuple(2**exponent for exponent in range(10, 41, 2))
#: From 64 bytes to 4 MiB. Chunks are at most a few hundred KiB on the copy lane, 2 MiB on the others.
CHUNK_BOUNDS: Final = tuple(2**exponent for exponent in range(6, 23, 2))
#: From 1 KiB/s to 16 GiB/s.
RATE_BOUNDS: Final = tuple(float(2**exponent) for exponent in range(10, 35, 2))
#: Up to an hour, since transfers of large files over slow links are normal.
SECONDS_BOUNDS: Final[tuple[float, ...]] = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    *(30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
#: Connections within a host take 0.1 ms, those to another continent with TLS half a second.
CONNECT_BOUNDS: Final[tuple[float, ...]] = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

# Series of failures are there from the start with 0: `increase` sees no failure whose series begins with it. With
# several workers, statistics are made anew whenever their numbers have changed: copies take half the time.
_NO_OUTCOMES: Final = dict.fromkeys(Outcome, 0)
_NO_BLAMES: Final[dict[Blame, int]] = {blame: 0 for blame in Blame if blame is not Blame.NONE}
#: The faults of clients are many, and no alert waits for the first of them.
_NO_FAULTS: Final = {kind.code: 0 for kind in FaultKind if kind.info.blame is not Blame.CLIENT}
_NO_WAITS: Final = dict.fromkeys(Leg, 0.0)


def _outcome_counter() -> Counts[Outcome]:
    return Counts(_NO_OUTCOMES)


def _blame_counter() -> Counts[Blame]:
    return Counts(_NO_BLAMES)


def _fault_counter() -> Counts[str]:
    return Counts(_NO_FAULTS)


class TransferStats:
    """Totals of the transfers of one route in one direction."""

    __slots__ = ("chunk_rates", "chunk_sizes", "in_flight", "lanes", "moved", "outcomes", "rates", "sizes")

    def __init__(self) -> None:
        #: Bytes by the name of the route's upstream, "" without one; more than one only around a reload.
        self.moved: Counts[str] = Counts()
        self.in_flight = 0
        self.outcomes = _outcome_counter()
        #: Transfers by the lane that moved most of their bytes.
        self.lanes: Counts[str] = Counts()
        self.chunk_sizes = Histogram(CHUNK_BOUNDS)
        self.chunk_rates = Histogram(RATE_BOUNDS)
        self.rates = Histogram(RATE_BOUNDS)
        self.sizes = Histogram(SIZE_BOUNDS)

    @property
    def bytes_moved(self) -> int:
        """Bytes moved so far."""
        return self.moved.total()


@dataclass(slots=True)
class RouteStats:
    """Totals of one route."""

    route: str
    #: Which of the same name: one that is created anew, after its series ended, has another number.
    number: int = 0
    in_flight: int = 0
    #: By method and status.
    requests: Counts[tuple[str, int]] = field(default_factory=Counts)
    #: Failed exchanges, by whose fault it was.
    failures: Counts[Blame] = field(default_factory=_blame_counter)
    #: Faults of exchanges, and of the files of a `split`, by code.
    faults: Counts[str] = field(default_factory=_fault_counter)
    durations: Histogram = field(default_factory=lambda: Histogram(SECONDS_BOUNDS))
    first_bytes: Histogram = field(default_factory=lambda: Histogram(SECONDS_BOUNDS))
    transfers: dict[Direction, TransferStats] = field(
        default_factory=lambda: {Direction.UPLOAD: TransferStats(), Direction.DOWNLOAD: TransferStats()}
    )
    waits: dict[Leg, float] = field(default_factory=_NO_WAITS.copy)
    #: By kind of part.
    parts: Counts[str] = field(default_factory=Counts)
    part_sizes: Histogram = field(default_factory=lambda: Histogram(SIZE_BOUNDS))
    #: Mirrored requests by outcome, and their bytes by result: sent, dropped. Empty without a mirror.
    mirrors: Counts[Outcome] = field(default_factory=Counts)
    mirror_bytes: Counts[str] = field(default_factory=Counts)
    part_outcomes: Counts[Outcome] = field(default_factory=_outcome_counter)

    def count_exchange(self, method: str, status: int, seconds: float, first_byte_seconds: float | None) -> None:
        """Count an exchange at its end. Unknown methods share the label `other`: clients cannot create labels."""
        self.requests[method if method in _METHODS else "other", status] += 1
        # `Histogram.observe` without the call: of every exchange.
        durations = self.durations
        durations.counts[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        durations.total += seconds
        if first_byte_seconds is not None:
            first_bytes = self.first_bytes
            first_bytes.counts[bisect_left(SECONDS_BOUNDS, first_byte_seconds)] += 1
            first_bytes.total += first_byte_seconds

    def add_mirror(self) -> None:
        """Create the series of a mirror; those that exist are kept."""
        for outcome in Outcome:
            self.mirrors.setdefault(outcome, 0)
        for result in ("sent", "dropped"):
            self.mirror_bytes.setdefault(result, 0)

    def count_part(self, kind: str, size_bytes: int, outcome: Outcome) -> None:
        """Count one part of a form at its end."""
        self.parts[kind] += 1
        self.part_outcomes[outcome] += 1
        self.part_sizes.observe(size_bytes)


#: Faults before a byte was sent, then those of requests that are sent a second time (`stale_connection`: the upstream
#: had closed a kept connection).
RETRY_REASONS: Final = (
    "connect_refused",
    "connect_timeout",
    "dns_error",
    "tls_error",
    "upstream_closed",
    "stale_connection",
)


#: The codes of requests that got no response, and the statuses that mean a failure of the service.
_REQUEST_FAILURES: Final[tuple[int | str, ...]] = (
    *(500, 502, 503, 504),
    *("connect_refused", "connect_timeout", "dns_error", "tls_error"),
    *("upstream_closed", "bad_response", "response_timeout", "upstream_stuck"),
)


@dataclass(slots=True)
class EndpointStats:
    """Totals of one endpoint of an upstream."""

    #: Whether it is healthy: its health checks pass, and it is not ejected.
    is_up: bool = True
    #: Why, since when (Unix time, 0 if it never changed), and when its ejection ends (0 if it is not ejected).
    reason: str = ""
    since: float = 0.0
    ejected_until: float = 0.0
    #: Requests sent to it that have not ended.
    in_flight: int = 0
    ejections: int = 0
    #: Requests by the status of the response; those without one by the code of their fault, or CANCELLED_CODE.
    requests: Counts[int | str] = field(default_factory=lambda: Counts(dict.fromkeys(_REQUEST_FAILURES, 0)))


@dataclass(slots=True)
class UpstreamStats:
    """Totals of one upstream over all routes."""

    upstream: str
    #: Which of the same name, as above.
    number: int = 0
    queue_length: int = 0
    #: Exchanges that it takes at once, infinite without a limit.
    slots: float = math.inf
    #: By the URL of the config, as long as the config in force has it.
    endpoints: dict[str, EndpointStats] = field(default_factory=dict)
    #: From the end of the request to the response head.
    response_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS_BOUNDS))
    #: Of new connections: name lookup, TCP, TLS.
    connect_seconds: Histogram = field(default_factory=lambda: Histogram(CONNECT_BOUNDS))
    #: Of exchanges that found no free slot.
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS_BOUNDS))
    #: By reason, one of RETRY_REASONS.
    retries: Counts[str] = field(default_factory=lambda: Counts(dict.fromkeys(RETRY_REASONS, 0)))


class Stats:
    """All statistics of one gateway. Those of each route and upstream are created with the config."""

    #: The route label of requests without a route: malformed, unknown path, refused while stopping.
    NO_ROUTE: Final = ""

    def __init__(self, routes: Iterable[tuple[str, str]], upstreams: Iterable[str]) -> None:
        self.routes = {self.NO_ROUTE: RouteStats(self.NO_ROUTE)}
        self.upstreams: dict[str, UpstreamStats] = {}
        #: Connections of clients: those with an exchange, and those that wait for the next. Set before each scrape.
        self.connections = {"active": 0, "idle": 0}
        #: The worker processes that serve, those that were replaced after they died, and those whose numbers are old.
        self.workers = 1
        self.worker_restarts = 0
        self.stale_workers = 0
        #: Reloads by result, and the Unix time at which the config in force was loaded.
        self.reloads = Counts({"success": 0, "failure": 0})
        self.configured_at = 0.0
        #: Returns the number of log lines that were never written.
        self.dropped_log_lines: Callable[[], int] = int
        #: Called before series end, while their last numbers are still here.
        self.before_drop: Callable[[], None] = _do_nothing
        self._next_number = 1
        self.add([(self.NO_ROUTE, ""), *routes], upstreams)

    def add(self, routes: Iterable[tuple[str, str]], upstreams: Iterable[str]) -> None:
        """Create the statistics of routes, given as (route, upstream), and upstreams; keep those that exist."""
        for name, upstream in routes:
            route = self.routes.get(name)
            if route is None:
                route = self.routes[name] = RouteStats(name, self._take_number())
            for transfer in route.transfers.values():
                transfer.moved[upstream] += 0
        for name in upstreams:
            if name not in self.upstreams:
                self.upstreams[name] = UpstreamStats(name, self._take_number())

    def keep(self, routes: Collection[tuple[str, str]], upstreams: Collection[str]) -> None:
        """Drop all but these: their series end. A name that comes back later starts at 0, as after a restart."""
        self.before_drop()
        routes = {(self.NO_ROUTE, ""), *routes}
        names = {name for name, _ in routes}
        self.routes = {name: route for name, route in self.routes.items() if name in names}
        self.upstreams = {name: stats for name, stats in self.upstreams.items() if name in upstreams}
        for name, route in self.routes.items():
            for transfer in route.transfers.values():
                for upstream in [each for each in transfer.moved if (name, each) not in routes]:
                    del transfer.moved[upstream]

    def record_config(self) -> None:
        """Record that a config was loaded."""
        self.configured_at = time.time()  # noqa: TID251 (the time of day)

    def _take_number(self) -> int:
        self._next_number += 1
        return self._next_number - 1


def _do_nothing() -> None:
    pass


#: Given up before a response: the client left, the gateway stopped, or another file of the form failed.
CANCELLED_CODE: Final = "cancelled"

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

"""What the statistics were in each of the last seconds: a ring of plain numbers, one point per second, 15 minutes long.

Recorded where the ops port is served, from the statistics of all processes. Its size is fixed: 29 KiB per route.
"""

from __future__ import annotations

import json
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Final, TypedDict

from gateway.errors import Blame, FaultKind
from gateway.observe.live import Slices, show_moment
from gateway.observe.stats import Direction, EndpointStats, RouteStats, Stats, UpstreamStats
from gateway.observe.waits import Clock

#: Points kept, one per second.
POINTS: Final = 900
#: For what is shown as now: one second alone jumps.
NOW_SECONDS: Final = 2
#: For the latencies and errors of upstreams.
RECENT_SECONDS: Final = 60
_FIRST_FAILURE: Final = 500
#: Requests may also end without a response because a client left or the gateway refused.
_UPSTREAM_CODES: Final = frozenset(kind.code for kind in FaultKind if kind.info.blame is Blame.UPSTREAM)


class Rates(TypedDict):
    """Means over some time."""

    upload_bytes_per_second: int
    download_bytes_per_second: int
    requests_per_second: float
    #: Exchanges that failed and the gateway or an upstream was to blame.
    errors_per_second: float


class Recent(TypedDict):
    """What an upstream did in the last minute."""

    requests_per_second: float
    errors_per_second: float
    #: From the end of a request to the response head; None without a response.
    response_seconds_p50: float | None
    response_seconds_p99: float | None


class History:
    """The last 15 minutes of one gateway."""

    def __init__(self, clock: Clock = time.monotonic, time_of_day: Callable[[], float] = time.time) -> None:  # noqa: TID251 (the time of day)
        self._clock = clock
        self._time_of_day = time_of_day
        self._routes: dict[str, _RouteSeries] = {}
        self._upstreams: dict[str, _UpstreamSeries] = {}
        #: Points recorded so far.
        self._count = 0
        self._recorded_at = clock()
        self._ended_at = time_of_day()

    def record(self, stats: Stats) -> None:
        """Record the time since the last call: once a second; after a pause, its mean for each second of it."""
        now = self._clock()
        seconds = now - self._recorded_at
        points = min(max(1, round(seconds)), POINTS)
        self._recorded_at, self._ended_at = now, self._time_of_day()
        self._routes = {name: self._routes.get(name) or _RouteSeries() for name in stats.routes}
        for name, route in stats.routes.items():
            self._routes[name].add(route, seconds or 1.0, self._count, points)
        self._upstreams = {name: self._upstreams.get(name) or _UpstreamSeries() for name in stats.upstreams}
        for name, upstream in stats.upstreams.items():
            self._upstreams[name].add(upstream, now, seconds)
        self._count += points

    def rates(self, route: str, seconds: int) -> Rates:
        """Return the means of a route over the last seconds, at most 15 minutes."""
        series = self._routes.get(route)
        length = min(seconds, self._count, POINTS)
        if series is None or not length:
            return _rates((0.0,) * _KINDS)
        return _rates([sum(_last(ring, self._count, length)) / length for ring in series.rings])

    def recent(self, upstream: str) -> Recent:
        """Return what an upstream did in the last minute."""
        series = self._upstreams.get(upstream)
        return series.recent() if series is not None else _UpstreamSeries().recent()

    async def encode(self) -> str:
        """Return the document of all points as JSON, encoded in slices."""
        count, ended_at = self._count, self._ended_at
        length = min(count, POINTS)
        # Points are recorded while other tasks run.
        copies = [(name, [ring[:] for ring in series.rings]) for name, series in self._routes.items()]
        slices = Slices()
        texts = []
        for name, rings in copies:
            columns = _columns([_last(ring, count, length) for ring in rings])
            texts.append(json.dumps({"route": name, **columns}, separators=(",", ":")))
            if slices.is_over:
                await slices.begin()
        head = {"interval_seconds": 1, "points": length, "end": show_moment(ended_at)}
        return f'{json.dumps(head)[:-1]}, "routes": [{",".join(texts)}]}}'


#: Upload, download, requests, errors.
_KINDS: Final = 4


class _RouteSeries:
    """The points of one route."""

    def __init__(self) -> None:
        self.rings = [array("d", bytes(8 * POINTS)) for _ in range(_KINDS)]
        #: When the series began, there was nothing.
        self._totals: Sequence[float] = (0.0,) * _KINDS

    def add(self, route: RouteStats, seconds: float, count: int, points: int) -> None:
        """Add points, each with the mean since the last call."""
        totals = (
            route.transfers[Direction.UPLOAD].bytes_moved,
            route.transfers[Direction.DOWNLOAD].bytes_moved,
            route.requests.total(),
            route.failures[Blame.GATEWAY] + route.failures[Blame.UPSTREAM],
        )
        before, self._totals = self._totals, totals
        for ring, total, previous in zip(self.rings, totals, before, strict=True):
            # A route that was removed and came back counts from 0.
            rate = max(0.0, total - previous) / seconds
            for position in range(count, count + points):
                ring[position % POINTS] = rate


class _UpstreamSeries:
    """The totals of one upstream in each second of the last minute."""

    def __init__(self) -> None:
        #: When; requests; errors; responses by their seconds, as `Histogram.counts`.
        self._points: deque[tuple[float, int, int, tuple[int, ...]]] = deque(maxlen=RECENT_SECONDS + 1)
        self._bounds: Sequence[float] = ()

    def add(self, upstream: UpstreamStats, now: float, seconds: float) -> None:
        """Add the totals of now; `seconds` after those before, or after nothing."""
        requests = sum(endpoint.requests.total() for endpoint in upstream.endpoints.values())
        errors = sum(count_errors(endpoint) for endpoint in upstream.endpoints.values())
        self._bounds = upstream.response_seconds.bounds
        if not self._points:
            self._points.append((now - seconds, 0, 0, (0,) * len(upstream.response_seconds.counts)))
        self._points.append((now, requests, errors, tuple(upstream.response_seconds.counts)))

    def recent(self) -> Recent:
        """Return what the difference between the oldest and the newest totals says."""
        seconds, requests, errors, counts = 0.0, 0, 0, [0]
        if self._points:
            first, last = self._points[0], self._points[-1]
            seconds, requests, errors = last[0] - first[0], last[1] - first[1], last[2] - first[2]
            counts = [after - before for before, after in zip(first[3], last[3], strict=True)]
        return {
            "requests_per_second": round(max(0, requests) / seconds, 3) if seconds else 0.0,
            "errors_per_second": round(max(0, errors) / seconds, 3) if seconds else 0.0,
            "response_seconds_p50": estimate_quantile(0.5, self._bounds, counts),
            "response_seconds_p99": estimate_quantile(0.99, self._bounds, counts),
        }


def count_errors(endpoint: EndpointStats) -> int:
    """Return how many requests an endpoint failed: it gave no response, or one with a status of 500 or more."""
    return sum(
        count
        for code, count in endpoint.requests.items()
        if (code in _UPSTREAM_CODES if isinstance(code, str) else code >= _FIRST_FAILURE)
    )


def estimate_quantile(share: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """Return the value that this share of the values does not exceed, None without values.

    As Prometheus's histogram_quantile: linear within a bucket, and the highest bound for what is above it.
    """
    sums = list(accumulate(counts))
    if not sums or sums[-1] <= 0 or not bounds:
        return None
    wanted = share * sums[-1]
    index = next(index for index, total in enumerate(sums) if total >= wanted and counts[index])
    if index == len(bounds):
        return bounds[-1]
    lowest = bounds[index - 1] if index else 0.0
    below = sums[index] - counts[index]
    return round(lowest + (bounds[index] - lowest) * (wanted - below) / counts[index], 4)


def _last(ring: array[float], count: int, length: int) -> list[float]:
    """Return the last points of a ring in which `count` points were recorded, the oldest first."""
    end = count % POINTS
    return [*ring[end:], *ring[:end]][POINTS - length :]


def _rates(means: Iterable[float]) -> Rates:
    upload, download, requests, errors = means
    return {
        "upload_bytes_per_second": round(upload),
        "download_bytes_per_second": round(download),
        "requests_per_second": round(requests, 3),
        "errors_per_second": round(errors, 3),
    }


def _columns(rings: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    upload, download, requests, errors = rings
    return {
        "upload_bytes_per_second": [round(value) for value in upload],
        "download_bytes_per_second": [round(value) for value in download],
        "requests_per_second": [round(value, 2) for value in requests],
        "errors_per_second": [round(value, 2) for value in errors],
    }

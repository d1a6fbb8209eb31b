"""What the API says of routes and upstreams: pure functions of the statistics and their history."""

from __future__ import annotations

import math
from typing import TypedDict

from gateway.observe.history import NOW_SECONDS, POINTS, RECENT_SECONDS, History, Rates, Recent, count_errors
from gateway.observe.live import show_moment
from gateway.observe.stats import Direction, EndpointStats, RouteStats, Stats, UpstreamStats


class RouteRow(TypedDict):
    """One route; the name "" is that of requests that match none."""

    route: str
    upstream: str | None
    in_flight: int
    now: Rates
    last_minute: Rates
    last_15_minutes: Rates
    #: Since the start.
    requests: int
    failures: dict[str, int]
    upload_bytes: int
    download_bytes: int
    #: Ended transfers by direction and outcome.
    outcomes: dict[str, dict[str, int]]
    #: Seconds of all exchanges by leg.
    wait_seconds: dict[str, float]


class EndpointRow(TypedDict):
    """One endpoint of an upstream."""

    endpoint: str
    is_up: bool
    #: Why it is down or was brought up; None if it has always been up.
    reason: str | None
    since: str | None
    ejected_until: str | None
    in_flight: int
    requests: int
    errors: int
    ejections: int


class UpstreamRow(TypedDict):
    """One upstream."""

    upstream: str
    #: `max_in_flight`; None where it is unlimited.
    slots: int | None
    in_flight: int
    queue_length: int
    requests: int
    errors: int
    retries: int
    last_minute: Recent
    endpoints: list[EndpointRow]


def describe_routes(stats: Stats, history: History) -> list[RouteRow]:
    """Return a row for every route; that of requests without a route comes last, if there were any."""
    named = [_route_row(route, history) for name, route in stats.routes.items() if name != Stats.NO_ROUTE]
    other = stats.routes.get(Stats.NO_ROUTE)
    return [*named, _route_row(other, history)] if other is not None and other.requests else named


def describe_upstreams(stats: Stats, history: History) -> list[UpstreamRow]:
    """Return a row for every upstream."""
    return [_upstream_row(upstream, history) for upstream in stats.upstreams.values()]


def _route_row(route: RouteStats, history: History) -> RouteRow:
    upload, download = route.transfers[Direction.UPLOAD], route.transfers[Direction.DOWNLOAD]
    # More than one only around a reload: the last is the one in force.
    upstreams = [name for name in upload.moved if name]
    return {
        "route": route.route,
        "upstream": upstreams[-1] if upstreams else None,
        "in_flight": route.in_flight,
        "now": history.rates(route.route, NOW_SECONDS),
        "last_minute": history.rates(route.route, RECENT_SECONDS),
        "last_15_minutes": history.rates(route.route, POINTS),
        "requests": route.requests.total(),
        "failures": {blame.value: count for blame, count in route.failures.items()},
        "upload_bytes": upload.bytes_moved,
        "download_bytes": download.bytes_moved,
        "outcomes": {
            direction.value: {outcome.value: count for outcome, count in transfers.outcomes.items() if count}
            for direction, transfers in route.transfers.items()
        },
        "wait_seconds": {leg.value: round(seconds, 3) for leg, seconds in route.waits.items() if seconds},
    }


def _upstream_row(upstream: UpstreamStats, history: History) -> UpstreamRow:
    endpoints = upstream.endpoints
    return {
        "upstream": upstream.upstream,
        "slots": None if math.isinf(upstream.slots) else round(upstream.slots),
        "in_flight": sum(each.in_flight for each in endpoints.values()),
        "queue_length": upstream.queue_length,
        "requests": sum(each.requests.total() for each in endpoints.values()),
        "errors": sum(map(count_errors, endpoints.values())),
        "retries": upstream.retries.total(),
        "last_minute": history.recent(upstream.upstream),
        "endpoints": [_endpoint_row(name, endpoint) for name, endpoint in endpoints.items()],
    }


def _endpoint_row(name: str, endpoint: EndpointStats) -> EndpointRow:
    return {
        "endpoint": name,
        "is_up": endpoint.is_up,
        "reason": endpoint.reason or None,
        "since": show_moment(endpoint.since) if endpoint.since else None,
        "ejected_until": show_moment(endpoint.ejected_until) if endpoint.ejected_until else None,
        "in_flight": endpoint.in_flight,
        "requests": endpoint.requests.total(),
        "errors": count_errors(endpoint),
        "ejections": endpoint.ejections,
    }

"""Timeouts that contradict each other: warnings, not problems. A key that was written has no effect because of another.

Defaults are not reported: `total: 30s` alone is no mistake, although `idle` is 60 s by default.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gateway.config.limits import RouteTimeouts
from gateway.config.model import Config, Route
from gateway.config.upstream import UpstreamTimeouts


def find_contradictions(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the key that has no effect, and why with how to mend it."""
    for name, upstream in config.upstreams.items():
        if math.isinf(upstream.timeouts.idle):
            yield f"upstreams.{name}.timeouts.idle", _ENDLESS
    for route in config.routes:
        yield from _check_route(route, f"routes.{route.name}.timeouts")
        if route.fetch is not None:
            yield from _check_idle(
                route.fetch.timeouts, f"routes.{route.name}.fetch.timeouts.idle", route.timeouts.total, route.name
            )
        elif route.upstream in config.upstreams:
            timeouts = config.upstreams[route.upstream].timeouts
            yield from _check_idle(
                timeouts, f"upstreams.{route.upstream}.timeouts.idle", route.timeouts.total, route.name
            )


_ENDLESS = (
    "it is off, so a peer that moves no byte keeps its connection and its slot forever: min_rate is about trickling "
    "only; set a time"
)


def _check_route(route: Route, key: str) -> Iterator[tuple[str, str]]:
    timeouts = route.timeouts
    written = timeouts.written
    if math.isinf(timeouts.idle) and math.isinf(timeouts.total):
        yield f"{key}.idle", _ENDLESS
    yield from _check_idle(timeouts, f"{key}.idle", timeouts.total, route.name)
    if timeouts.min_rate and math.isinf(timeouts.grace):
        yield f"{key}.grace", "it is off, so min_rate is never measured: set a time, or min_rate: off"
    elif not timeouts.min_rate and "grace" in written:
        yield f"{key}.grace", "it has no effect, since min_rate is off: remove it, or set min_rate"
    elif timeouts.min_rate and timeouts.total <= timeouts.grace and {"grace", "min_rate"} & written:
        yield (
            f"{key}.grace",
            f"min_rate is measured over {timeouts.grace:g} s and total ends every transfer after "
            f"{timeouts.total:g} s: lower grace, or raise {key}.total",
        )


def _check_idle(
    timeouts: RouteTimeouts | UpstreamTimeouts, key: str, total_seconds: float, route: str
) -> Iterator[tuple[str, str]]:
    if "idle" in timeouts.written and total_seconds <= timeouts.idle < math.inf:
        yield (
            key,
            f"{timeouts.idle:g} s never pass: routes.{route}.timeouts.total ends every transfer after "
            f"{total_seconds:g} s; lower idle, or raise total",
        )

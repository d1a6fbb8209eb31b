"""The transfer policies of a route: made with the config, the same for every exchange."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gateway.config import Route
from gateway.observe.stats import Direction, Leg
from gateway.transfer import LegLimits, TransferPolicy


@dataclass(frozen=True, slots=True)
class ResponsePolicies:
    """The policies of an upstream's responses."""

    #: For a body of known length: a file, which may be held to a rate.
    sized: TransferPolicy
    #: For a body of unknown length: it may be a stream of events.
    endless: TransferPolicy


def upload_policy(route: Route, write_leg: Leg, write_limits: LegLimits) -> TransferPolicy:
    """Return the policy of request bodies that are written to `write_leg`."""
    total = route.timeouts.total
    return TransferPolicy(
        Direction.UPLOAD, Leg.DOWNSTREAM_READ, write_leg, _client_limits(route), write_limits, total, route.upstream
    )


def download_policy(route: Route, read_leg: Leg, read_limits: LegLimits) -> TransferPolicy:
    """Return the policy of response bodies that are read from `read_leg`."""
    total = route.timeouts.total
    return TransferPolicy(
        Direction.DOWNLOAD, read_leg, Leg.DOWNSTREAM_WRITE, read_limits, _client_limits(route), total, route.upstream
    )


def response_policies(route: Route, idle_seconds: float) -> ResponsePolicies:
    """Return the policies of an upstream's responses; it may be silent for `idle_seconds`."""
    sized = download_policy(route, Leg.UPSTREAM_READ, upstream_limits(route, idle_seconds))
    return ResponsePolicies(sized, download_policy(route, Leg.UPSTREAM_READ, LegLimits(idle_seconds)))


def upstream_limits(route: Route, idle_seconds: float) -> LegLimits:
    """Return how slowly an upstream may read a request body; it may stop for `idle_seconds`."""
    return LegLimits(idle_seconds, route.timeouts.min_rate, route.timeouts.grace)


def _client_limits(route: Route) -> LegLimits:
    timeouts = route.timeouts
    return LegLimits(timeouts.idle, timeouts.min_rate, timeouts.grace if timeouts.min_rate else math.inf)

"""How the bodies of a route are watched: said with the config, the same for every exchange."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gateway.config import Route
from gateway.observe.stats import Direction, Leg
from gateway.transfer import LegLimits, TransferPolicy


@dataclass(frozen=True, slots=True)
class ResponsePolicies:
    """What an upstream's answers are held to."""

    #: A body of known length is a file: it may be held to a rate.
    sized: TransferPolicy
    #: One without may be a stream of events.
    endless: TransferPolicy


def upload_policy(route: Route, write_leg: Leg, write_limits: LegLimits) -> TransferPolicy:
    """Return the course of request bodies towards `write_leg`."""
    total = route.timeouts.total
    return TransferPolicy(Direction.UPLOAD, Leg.DOWNSTREAM_READ, write_leg, _client_limits(route), write_limits, total)


def download_policy(route: Route, read_leg: Leg, read_limits: LegLimits) -> TransferPolicy:
    """Return the course of answers' bodies from `read_leg`."""
    total = route.timeouts.total
    return TransferPolicy(Direction.DOWNLOAD, read_leg, Leg.DOWNSTREAM_WRITE, read_limits, _client_limits(route), total)


def response_policies(route: Route, idle_seconds: float) -> ResponsePolicies:
    """Return the courses of an upstream's answers, where it may be silent for so long."""
    sized = download_policy(route, Leg.UPSTREAM_READ, upstream_limits(route, idle_seconds))
    return ResponsePolicies(sized, download_policy(route, Leg.UPSTREAM_READ, LegLimits(idle_seconds)))


def upstream_limits(route: Route, idle_seconds: float) -> LegLimits:
    """Return how slow an upstream may take a request body, where it may be silent for so long."""
    return LegLimits(idle_seconds, route.timeouts.min_rate, route.timeouts.grace)


def _client_limits(route: Route) -> LegLimits:
    timeouts = route.timeouts
    return LegLimits(timeouts.idle, timeouts.min_rate, timeouts.grace if timeouts.min_rate else math.inf)

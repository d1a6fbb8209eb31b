"""The transfer policies of a route: made with the config, the same for every exchange."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    client = (Leg.DOWNSTREAM_READ, _client_limits(route))
    return _policy(route, Direction.UPLOAD, client, (write_leg, write_limits))


def file_policy(route: Route, read_leg: Leg) -> TransferPolicy:
    """Return the policy of files that are read from `read_leg`; a disk is held to no rate."""
    disk = (read_leg, LegLimits(route.timeouts.idle, f"{_key(route)}.idle"))
    return _policy(route, Direction.DOWNLOAD, disk, (Leg.DOWNSTREAM_WRITE, _client_limits(route)))


def response_policies(route: Route, idle_seconds: float, idle_key: str) -> ResponsePolicies:
    """Return the policies of an upstream's responses; it may be silent for `idle_seconds`."""
    upstream, client = upstream_limits(route, idle_seconds, idle_key), _client_limits(route)
    sized = _policy(route, Direction.DOWNLOAD, (Leg.UPSTREAM_READ, upstream), (Leg.DOWNSTREAM_WRITE, client))
    return ResponsePolicies(sized, replace(sized, read_limits=_unrated(upstream), write_limits=_unrated(client)))


def upstream_limits(route: Route, idle_seconds: float, idle_key: str) -> LegLimits:
    """Return how slow an upstream may be; it may be silent for `idle_seconds`."""
    return LegLimits(idle_seconds, idle_key, route.timeouts.min_rate, route.timeouts.grace)


def _client_limits(route: Route) -> LegLimits:
    """Return how slow a client may be."""
    timeouts = route.timeouts
    return LegLimits(timeouts.idle, f"{_key(route)}.idle", timeouts.min_rate, timeouts.grace)


def _unrated(limits: LegLimits) -> LegLimits:
    return LegLimits(limits.idle_seconds, limits.idle_key)


def _policy(
    route: Route, direction: Direction, source: tuple[Leg, LegLimits], sink: tuple[Leg, LegLimits]
) -> TransferPolicy:
    return TransferPolicy(
        direction, source[0], sink[0], source[1], sink[1], route.timeouts.total, _key(route), route.upstream
    )


def _key(route: Route) -> str:
    return f"routes.{route.name}.timeouts"

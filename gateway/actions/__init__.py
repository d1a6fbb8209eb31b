"""What routes do: each action a story told in order, from a checked request head to the last byte of the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from gateway.actions.fetch import FetchAction
from gateway.actions.files import FilesAction
from gateway.actions.form_routing import choose_route
from gateway.actions.forward import ForwardAction
from gateway.actions.mirror import Mirror
from gateway.actions.split import SplitAction
from gateway.actions.store import StoreAction
from gateway.config import Route
from gateway.config.model import Fetch, Files, Forward, Split
from gateway.downstream import Exchange
from gateway.filters import FilterKind
from gateway.http.routing import Found
from gateway.storage import DiskWorkers
from gateway.transfer import Carrier
from gateway.transfer.timers import Timers
from gateway.upstream import Service

Action = Callable[[Exchange, Found], Awaitable[None]]

__all__ = ["Action", "FetchAction", "ForwardAction", "choose_route", "make_action"]


def make_action(
    route: Route,
    services: Mapping[str, Service],
    workers: DiskWorkers,
    carrier: Carrier,
    timers: Timers,
    *,
    kinds: Sequence[FilterKind],
) -> Action | ForwardAction | FetchAction:
    """Return the action of a route, ready to take exchanges."""
    match route.action:
        case Forward() as config:
            mirror = _make_mirror(config, services, workers)
            return ForwardAction(route, config, services[config.upstream], carrier, filters=kinds, mirror=mirror)
        case Split() as config:
            return SplitAction(route, config, services[config.upstream], carrier, kinds)
        case Files() as config:
            return FilesAction(route, config, workers, carrier)
        case Fetch() as config:
            return FetchAction(route, config, carrier, timers)
        case config:
            return StoreAction(route, config, workers, carrier, kinds)


def _make_mirror(config: Forward, services: Mapping[str, Service], workers: DiskWorkers) -> Mirror | None:
    if config.mirror is None:
        return None
    name = config.mirror.upstream
    return Mirror(config.mirror, services[name] if name is not None else None, workers)

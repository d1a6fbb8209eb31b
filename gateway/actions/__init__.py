"""What routes do. Each action reads from top to bottom: from a request head to the last byte of the response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.actions.action import Action
from gateway.actions.fetch import FetchAction
from gateway.actions.files import FilesAction
from gateway.actions.form_routing import match_form_route
from gateway.actions.forward import ForwardAction
from gateway.actions.mirror import Mirror
from gateway.actions.split import SplitAction
from gateway.actions.store import StoreAction
from gateway.config import Route
from gateway.config.model import Fetch, Files, Forward, Split
from gateway.filters import FilterFactory
from gateway.storage import DiskThreads, make_storage
from gateway.transfer import Lanes, Timers
from gateway.upstream import UpstreamPool

__all__ = ["Action", "FetchAction", "ForwardAction", "make_action", "match_form_route"]


def make_action(
    route: Route,
    upstreams: Mapping[str, UpstreamPool],
    disk_threads: DiskThreads,
    lanes: Lanes,
    timers: Timers,
    *,
    factories: Sequence[FilterFactory],
) -> Action:
    """Return the action of a route."""
    match route.action:
        case Forward() as config:
            mirror = _make_mirror(config, upstreams, disk_threads)
            return ForwardAction(route, config, upstreams[config.upstream], lanes, filters=factories, mirror=mirror)
        case Split() as config:
            return SplitAction(route, config, upstreams[config.upstream], lanes, factories)
        case Files() as config:
            return FilesAction(route, make_storage(config, disk_threads), lanes)
        case Fetch() as config:
            return FetchAction(route, config, lanes, timers)
        case config:
            return StoreAction(route, config, make_storage(config, disk_threads), lanes, factories)


def _make_mirror(config: Forward, upstreams: Mapping[str, UpstreamPool], disk_threads: DiskThreads) -> Mirror | None:
    if config.mirror is None:
        return None
    name = config.mirror.upstream
    return Mirror(config.mirror, upstreams[name] if name is not None else None, disk_threads)

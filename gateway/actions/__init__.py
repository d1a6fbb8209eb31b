"""What routes do. Each action reads from top to bottom: from a request head to the last byte of the response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.actions.action import Action
from gateway.actions.fetch import FetchAction
from gateway.actions.files import FilesAction
from gateway.actions.form_routing import match_form_route
from gateway.actions.forward import ForwardAction
from gateway.actions.mirror import MIRROR_SYNC_SECONDS, Mirror
from gateway.actions.split import SplitAction
from gateway.actions.store import StoreAction
from gateway.actions.whole_forward import WholeForward
from gateway.config import Route
from gateway.config.actions import Fetch, Files, Forward, Split
from gateway.filters import FilterFactory
from gateway.storage import DirectoryStorage, Disks, make_storage
from gateway.transfer import Lanes, Timers
from gateway.upstream import Resolver, UpstreamPool

__all__ = ["Action", "FetchAction", "ForwardAction", "WholeForward", "make_action", "match_form_route"]


def make_action(
    route: Route,
    upstreams: Mapping[str, UpstreamPool],
    disks: Disks,
    lanes: Lanes,
    timers: Timers,
    *,
    resolver: Resolver,
    factories: Sequence[FilterFactory],
) -> Action:
    """Return the action of a route."""
    match route.action:
        case Forward() as config:
            mirror = _make_mirror(route, config, upstreams, disks)
            return ForwardAction(route, config, upstreams[config.upstream], lanes, filters=factories, mirror=mirror)
        case Split() as config:
            return SplitAction(route, config, upstreams[config.upstream], lanes, factories)
        case Files() as config:
            return FilesAction(route, make_storage(route, config, disks), lanes)
        case Fetch() as config:
            return FetchAction(route, config, lanes, timers, resolver)
        case config:
            return StoreAction(route, config, make_storage(route, config, disks), lanes, factories)


def _make_mirror(route: Route, config: Forward, upstreams: Mapping[str, UpstreamPool], disks: Disks) -> Mirror | None:
    mirror = config.mirror
    if mirror is None:
        return None
    if mirror.upstream is not None:
        return Mirror(mirror, upstreams[mirror.upstream])
    directory = mirror.directory or ""
    disk_threads = disks.of(directory, route.timeouts.idle, MIRROR_SYNC_SECONDS)
    return Mirror(mirror, DirectoryStorage(Path(directory), disk_threads, disks.without_disk()))

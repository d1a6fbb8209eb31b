"""What one config makes of the gateway: its routes, their actions, the upstreams they ask. A reload replaces it whole.

An exchange belongs to the serving it began with until its end, however long that takes. An upstream whose part of the
config is unchanged is handed on to the next serving with all that is known of it: its connections, its queue, the
health of its endpoints. What nobody has any more is closed when its last exchange has ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from concurrent.futures import Executor
from dataclasses import dataclass

from gateway.actions import Action, FetchAction, ForwardAction, make_action
from gateway.config import Config
from gateway.filters import FilterContext, make_filters
from gateway.http.routing import RouteTable
from gateway.observe.stats import Stats
from gateway.storage import DiskThreads
from gateway.transfer import Lanes, Timers
from gateway.upstream import UpstreamPool
from gateway.upstream.capacity import InFlightCounter


@dataclass(frozen=True, slots=True)
class Resources:
    """What outlives every config."""

    stats: Stats
    timers: Timers
    disk_threads: DiskThreads
    #: For the work of filters.
    threads: Executor


class Runtime:
    """One config in force. `close` it."""

    def __init__(self, config: Config, resources: Resources, before: Runtime | None = None) -> None:
        self.config = config
        self.table = RouteTable(config.routes)
        self.upstreams = _make_upstreams(config, resources, before)
        self.actions = self._make_actions(resources)
        #: Entered by every exchange that began with it.
        self.exchanges = InFlightCounter()

    async def close(self, *, but: Collection[UpstreamPool] = ()) -> None:
        """Close its actions, and its services but for those others have too."""
        async with contextlib.AsyncExitStack() as stack:
            for upstream in self.upstreams.values():
                if upstream not in but:
                    stack.push_async_callback(upstream.close)
            for action in self.actions.values():
                if isinstance(action, FetchAction | ForwardAction):
                    stack.push_async_callback(action.close)

    def _make_actions(self, resources: Resources) -> dict[str, Action | FetchAction | ForwardAction]:
        lanes = Lanes(is_raw_allowed=self.config.lanes == "auto")
        return {
            route.name: make_action(
                route,
                self.upstreams,
                resources.disk_threads,
                lanes,
                resources.timers,
                factories=make_filters(route, FilterContext(route.name, resources.threads)),
            )
            for route in self.config.routes
        }


def _make_upstreams(config: Config, resources: Resources, before: Runtime | None) -> dict[str, UpstreamPool]:
    return {
        name: before.upstreams[name]
        if before is not None and before.config.upstreams.get(name) == upstream
        else UpstreamPool(name, upstream, resources.stats.upstreams[name], resources.timers)
        for name, upstream in config.upstreams.items()
    }

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
from gateway.observe.stats import Tally
from gateway.storage import DiskWorkers
from gateway.transfer import Carrier
from gateway.transfer.timers import Timers
from gateway.upstream import Service
from gateway.upstream.capacity import Drain


@dataclass(frozen=True, slots=True)
class Shared:
    """What outlives every config."""

    tally: Tally
    timers: Timers
    workers: DiskWorkers
    #: For the work of filters.
    threads: Executor


class Serving:
    """One config in force. `close` it."""

    def __init__(self, config: Config, shared: Shared, before: Serving | None = None) -> None:
        self.config = config
        self.table = RouteTable(config.routes)
        self.services = _make_services(config, shared, before)
        self.actions = self._make_actions(shared)
        #: Entered by every exchange that began with it.
        self.exchanges = Drain()

    async def close(self, *, but: Collection[Service] = ()) -> None:
        """Close its actions, and its services but for those others have too."""
        async with contextlib.AsyncExitStack() as stack:
            for service in self.services.values():
                if service not in but:
                    stack.push_async_callback(service.close)
            for action in self.actions.values():
                if isinstance(action, FetchAction | ForwardAction):
                    stack.push_async_callback(action.close)

    def _make_actions(self, shared: Shared) -> dict[str, Action | FetchAction | ForwardAction]:
        carrier = Carrier(self.config.lanes)
        return {
            route.name: make_action(
                route,
                self.services,
                shared.workers,
                carrier,
                shared.timers,
                kinds=make_filters(route, FilterContext(route.name, shared.threads)),
            )
            for route in self.config.routes
        }


def _make_services(config: Config, shared: Shared, before: Serving | None) -> dict[str, Service]:
    return {
        name: before.services[name]
        if before is not None and before.config.upstreams.get(name) == upstream
        else Service(name, upstream, shared.tally.upstreams[name], shared.timers)
        for name, upstream in config.upstreams.items()
    }

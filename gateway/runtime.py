"""What one config makes of the gateway: its route table, actions and upstreams. A reload replaces it whole.

An exchange uses the runtime it began with until its end, however long that takes. An upstream whose part of the config
is unchanged is passed on to the next runtime with its connections; of a changed one, and of every route, the state and
the counts are passed on (`Stats`, `UpstreamState`). What the next runtime does not use is closed and dropped when its
last exchange has ended. Creating a runtime changes nothing that is in force; `activate` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

from gateway.actions import Action, ForwardAction, WholeForward, make_action
from gateway.aiohttp_seam import load_certificates
from gateway.config import Config, Route
from gateway.config.check import server_context
from gateway.config.url import parse_url
from gateway.cores import count_workers
from gateway.filters import FilterContext, FilterFactory, make_filters
from gateway.http.routing import RouteTable
from gateway.observe.stats import Stats
from gateway.sharing import SharedLimits
from gateway.storage import Disks, load_object_store
from gateway.threads import Threads
from gateway.transfer import Lanes, Timers
from gateway.upstream import Resolver, UpstreamPool, UpstreamState

_CPU_COUNT: Final = os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Resources:
    """What every runtime uses."""

    stats: Stats
    timers: Timers
    disks: Disks
    resolver: Resolver
    #: Those that a worker shares with others.
    limits: SharedLimits | None = None
    #: By the name of the upstream.
    upstreams: dict[str, UpstreamState] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A config with what comes from files: read by `prepare`, in a thread while the gateway serves."""

    config: Config
    #: None without TLS.
    tls: ssl.SSLContext | None
    #: The filters of each route.
    filters: Mapping[str, Sequence[FilterFactory]]


def opens_tls(config: Config) -> bool:
    """Return whether the gateway opens TLS connections, to an upstream or to a URL that a client names."""
    endpoints = [endpoint for upstream in config.upstreams.values() for endpoint in upstream.endpoints]
    endpoints += [parse_url(prefix).endpoint for route in config.routes if route.fetch for prefix in route.fetch.allow]
    return any(endpoint.scheme == "https" for endpoint in endpoints)


def prepare(config: Config, limits: SharedLimits | None = None) -> Prepared:
    """Read certificates, and load filters and the library of object stores. Blocks. Raises FilterProblem, OSError.

    A filter of a plug-in may raise anything.
    """
    if opens_tls(config):
        load_certificates()
    tls = config.tls
    context = server_context(tls.certificate, tls.key) if tls is not None else None
    if any((action := route.store or route.files) is not None and action.url is not None for route in config.routes):
        load_object_store()
    filters = {route.name: make_filters(route, _filter_context(route), limits) for route in config.routes}
    return Prepared(config, context, filters)


class InFlightCounter:
    """Counts the exchanges in flight, so that the last one can be waited for."""

    def __init__(self) -> None:
        self.in_flight = 0
        #: Done once there is none; None while nothing waits for it.
        self._empty: asyncio.Future[None] | None = None

    def __enter__(self) -> None:
        """Count an exchange until the block is left."""
        self.in_flight += 1

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Count an exchange off."""
        self.in_flight -= 1
        if not self.in_flight and self._empty is not None:
            self._empty.set_result(None)
            self._empty = None

    async def wait_empty(self) -> None:
        """Wait until no exchange is in flight."""
        if self.in_flight:
            if self._empty is None:
                self._empty = asyncio.get_running_loop().create_future()
            # Others may wait for the same.
            await asyncio.shield(self._empty)


class Runtime:
    """One config in force. Close it after its last exchange."""

    def __init__(self, prepared: Prepared, resources: Resources, before: Runtime | None = None) -> None:
        config = prepared.config
        self.config = config
        self.tls = prepared.tls
        self._limits = resources.limits
        self.table = RouteTable(config.routes)
        resources.stats.add(((route.name, route.upstream) for route in config.routes), config.upstreams)
        self.stats = {route.name: resources.stats.routes[route.name] for route in config.routes}
        for route in config.routes:
            if route.forward is not None and route.forward.mirror is not None:
                self.stats[route.name].add_mirror()
        self.upstreams = _make_upstreams(config, resources, before)
        self.actions = self._make_actions(prepared, resources)
        #: The steps of the express lane, by the name of the route.
        self.express = _find_express(self.actions) if config.lanes == "auto" else {}
        #: Entered by every exchange that began with it.
        self.exchanges = InFlightCounter()

    def activate(self) -> None:
        """Put it in force: the limits of its upstreams apply, also to exchanges that began before."""
        if self._limits is not None:
            self._limits.worker_count = count_workers(self.config)
        for upstream in self.upstreams.values():
            upstream.activate()

    def unavailable_upstreams(self) -> list[str]:
        """Return the names of upstreams without an endpoint that is up."""
        return [name for name, upstream in self.upstreams.items() if not upstream.is_available]

    def can_serve(self) -> bool:
        """Return whether at least one route can be served: it has no upstream, or one with an endpoint that is up."""
        unavailable = self.unavailable_upstreams()
        return any(route.upstream not in unavailable for route in self.config.routes)

    async def close(self, *, but: Collection[UpstreamPool] = ()) -> None:
        """Close its actions, and its upstreams except those in `but`, which another runtime uses."""
        async with contextlib.AsyncExitStack() as stack:
            for upstream in self.upstreams.values():
                if upstream not in but:
                    stack.push_async_callback(upstream.close)
            for action in self.actions.values():
                stack.push_async_callback(action.close)

    def _make_actions(self, prepared: Prepared, resources: Resources) -> dict[str, Action]:
        lanes = Lanes(is_raw_allowed=self.config.lanes == "auto")
        return {
            route.name: make_action(
                route,
                self.upstreams,
                resources.disks,
                lanes,
                resources.timers,
                resolver=resources.resolver,
                factories=prepared.filters[route.name],
            )
            for route in self.config.routes
        }


def _find_express(actions: Mapping[str, Action]) -> dict[str, WholeForward]:
    found = {name: action.whole for name, action in actions.items() if isinstance(action, ForwardAction)}
    return {name: steps for name, steps in found.items() if steps is not None}


def _make_upstreams(config: Config, resources: Resources, before: Runtime | None) -> dict[str, UpstreamPool]:
    return {
        name: before.upstreams[name]
        if before is not None and before.config.upstreams.get(name) == upstream
        else UpstreamPool(upstream, _state_of(name, resources), resources.timers, resources.resolver)
        for name, upstream in config.upstreams.items()
    }


def _state_of(name: str, resources: Resources) -> UpstreamState:
    state = resources.upstreams.get(name)
    if state is None:
        state = resources.upstreams[name] = UpstreamState(resources.stats.upstreams[name], resources.limits)
    return state


def _filter_context(route: Route) -> FilterContext:
    """Return what filters of a route use. Its threads are its own: a plug-in that blocks stops one route only."""
    return FilterContext(route.name, Threads("filter", _CPU_COUNT))

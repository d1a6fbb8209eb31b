"""An upstream as one config has it: its connections, its timeouts, and which endpoint is tried next."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import NamedTuple, TypeGuard

from gateway.aiohttp_seam import ClientConnection
from gateway.config import Upstream
from gateway.config.values import Endpoint
from gateway.errors import Fault, FaultKind
from gateway.observe.stats import CANCELLED_CODE
from gateway.transfer import Timers
from gateway.upstream.balancing import Balancer, EndpointState
from gateway.upstream.client import UNSENT, Unanswered, Unreplaced, UpstreamClient, Whose
from gateway.upstream.ejection import FAILURE_STATUSES, FAILURES
from gateway.upstream.health import watch_endpoints
from gateway.upstream.request import OutgoingBody, UpstreamRequest
from gateway.upstream.request_head import RequestHead
from gateway.upstream.resolver import Resolver
from gateway.upstream.response import UpstreamResponse
from gateway.upstream.state import UpstreamState


class Started(NamedTuple):
    """A request that was sent whole on a kept connection, and whose response was not received yet."""

    #: The endpoint it was sent to.
    state: EndpointState
    head: RequestHead
    request: UpstreamRequest


class UpstreamPool:
    """One upstream and its connections. Close it after its last exchange.

    Creating it changes nothing of `state`, which a pool of the config before may use: a config that cannot be used
    leaves no trace. `activate` puts it in force.
    """

    def __init__(self, config: Upstream, state: UpstreamState, timers: Timers, resolver: Resolver) -> None:
        self.name = state.stats.upstream
        self.framing = config.framing
        self.idle_seconds = config.timeouts.idle
        #: The config key of the timeouts.
        self.timeouts_key = f"upstreams.{self.name}.timeouts"
        self.capacity = state.capacity
        whose = Whose(f"upstream {self.name!r}", f"upstreams.{self.name}.endpoints", self.timeouts_key)
        self._config = config
        self._state = state
        self._stats = state.stats
        self._client = UpstreamClient(config.timeouts, timers, whose, resolver, stats=state.stats)
        self._resolver = resolver
        self._states = state.endpoints(config.endpoints)
        self._balancer = Balancer(config.policy, self._states)

    def activate(self) -> None:
        """Apply the limits and endpoints of the config; exchanges that began with another keep their slots."""
        self._state.configure(self._config, self._states)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    @property
    def is_available(self) -> bool:
        """Whether at least one endpoint is healthy."""
        return any(state.is_healthy for state in self._states)

    def take_kept(self) -> tuple[EndpointState, ClientConnection] | None:
        """Choose an endpoint, and take a kept connection to it; None, with nothing changed, if it has none."""
        state = self._balancer.choose()
        connection = self._client.take_kept(state.endpoint)
        if connection is None:
            self._balancer.take_back()
            return None
        return state, connection

    def start(self, state: EndpointState, connection: ClientConnection, head: RequestHead, body: bytes) -> Started:
        """Send a whole request on the connection that `take_kept` returned.

        `send` may go on with it at any time, until `receive` has returned its response: to wait for it with its
        deadline, for interim responses, and for all that goes wrong.
        """
        self._state.budget.deposit()
        started = Started(state, head, self._client.start(state.endpoint, head, body, connection))
        state.stats.in_flight += 1
        return started

    def receive(self, started: Started) -> UpstreamResponse | None:
        """Take the response to a request that was started; None if its head is not here, or `send` has to judge it."""
        response = self._client.receive(started.request, started.head.method)
        if response is not None:
            self._count_response(started.state, response)
        return response

    def abandon(self, started: Started, exc: BaseException) -> None:
        """Close a request that was started and whose response was not received."""
        if started.request.connection is not None:
            started.request.close(is_whole=False)
            self._count_failure(started.state, exc)

    async def send(
        self,
        head: RequestHead,
        body: OutgoingBody | None,
        *,
        on_endpoint: Callable[[Endpoint], None] | None = None,
        on_connected: Callable[[], None] | None = None,
        started: Started | None = None,
    ) -> UpstreamResponse:
        """Send a request to the first endpoint that responds; return its response, to be closed.

        Each endpoint is tried once at most: the next if one cannot be connected, since nothing was sent then; or if the
        connection ended without a response and the request may be sent a second time, within `retries`. With `started`,
        a request that was started is the first try.

        `on_endpoint` is called with every endpoint that is tried, `on_connected` once one is connected. Raises Fault.
        """
        if started is None:
            self._state.budget.deposit()
        tried: list[EndpointState] = []
        attempts_left = self._config.retries.attempts
        while True:
            try:
                if started is not None:
                    state = started.state
                    return await self._send(state, head, body, on_connected, started.request)
                state = self._balancer.choose(tried)
                if on_endpoint is not None:
                    on_endpoint(state.endpoint)
                state.stats.in_flight += 1
                return await self._send(state, head, body, on_connected)
            except Fault as fault:
                started = None
                tried.append(state)
                if len(tried) == len(self._states):
                    raise
                if isinstance(fault, Unreplaced):
                    if not fault.is_repeatable:
                        raise
                    body = fault.body
                elif fault.kind not in UNSENT:
                    if not (attempts_left and _is_repeatable(fault) and self._state.budget.withdraw()):
                        raise
                    attempts_left -= 1
                    body = fault.body
                self._stats.retries[fault.kind.code] += 1

    async def _send(
        self,
        state: EndpointState,
        head: RequestHead,
        body: OutgoingBody | None,
        on_connected: Callable[[], None] | None,
        started: UpstreamRequest | None = None,
    ) -> UpstreamResponse:
        """Send a request that is counted as in flight."""
        try:
            response = await self._client.send(state.endpoint, head, body, on_connected=on_connected, started=started)
        except BaseException as exc:
            # Also when cancelled: without a response nothing else counts it off.
            self._count_failure(state, exc)
            raise
        self._count_response(state, response)
        return response

    def _count_response(self, state: EndpointState, response: UpstreamResponse) -> None:
        """Count a response; its request is counted off when it is closed."""
        state.stats.requests[response.status] += 1
        response.on_closed = functools.partial(self._leave, state)

    def _count_failure(self, state: EndpointState, exc: BaseException) -> None:
        """Count off a request without a response."""
        state.stats.in_flight -= 1
        state.stats.requests[_code(exc)] += 1
        if isinstance(exc, Fault) and exc.kind in FAILURES and not _is_stale(exc):
            self._state.record_failure(state, exc.kind.code)

    def _leave(self, state: EndpointState, response: UpstreamResponse) -> None:
        """Count off an exchange that has ended, and record what that says of the endpoint.

        An exchange that the client ended says nothing.
        """
        state.stats.in_flight -= 1
        if response.status in FAILURE_STATUSES:
            self._state.record_failure(state, f"status {response.status}")
        elif response.fault is not None and response.fault.kind in FAILURES:
            self._state.record_failure(state, response.fault.kind.code)
        elif response.is_whole:
            self._state.record_success(state)

    async def watch_health(self) -> None:
        """Check the endpoints until cancelled, where the config has health checks; after a bug, start again."""
        if self._config.health is not None:
            await watch_endpoints(self._state, self._states, self._config.health, self._resolver)


def _code(exc: BaseException) -> str:
    """Return the label of a request that got no response."""
    if isinstance(exc, Fault):
        return exc.kind.code
    return CANCELLED_CODE if isinstance(exc, asyncio.CancelledError) else FaultKind.BUG.code


def _is_repeatable(fault: Fault) -> TypeGuard[Unanswered]:
    return isinstance(fault, Unanswered) and fault.is_repeatable


def _is_stale(fault: Fault) -> bool:
    """Whether a request met a kept connection that the upstream had closed: it may close one any time."""
    return isinstance(fault, Unanswered) and fault.was_kept

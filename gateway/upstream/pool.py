"""An upstream as one config has it: its connections, its timeouts, and which endpoint is tried next."""

from __future__ import annotations

import asyncio
import functools
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import TypeGuard

from gateway.aiohttp_seam import ClientConnection
from gateway.config import Upstream
from gateway.config.values import Endpoint
from gateway.errors import Fault, FaultKind
from gateway.http.whole_response import WholeResponse
from gateway.observe.stats import CANCELLED_CODE, SECONDS_BOUNDS
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


class Started:
    """A request that was sent whole on a kept connection."""

    __slots__ = ("_body", "_request", "connection", "head", "sent_at", "state")

    def __init__(self, state: EndpointState, connection: ClientConnection, head: RequestHead, body: bytes) -> None:
        #: The endpoint it was sent to.
        self.state = state
        #: None once it was given back.
        self.connection: ClientConnection | None = connection
        self.head = head
        self._body = body
        self._request: UpstreamRequest | None = None
        #: On the monotonic clock.
        self.sent_at = time.monotonic()

    def request(self) -> UpstreamRequest:
        """Return it as a request of the normal path."""
        if self._request is None:
            self._request = UpstreamRequest(self.head, self.state.endpoint, None)
            if self.connection is not None:
                self._request.go_on(self.connection, self._body, self.sent_at)
        return self._request


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
        #: Where there is nothing to choose.
        self._only = self._states[0] if len(self._states) == 1 else None
        self._kept = {state: self._client.kept(state.endpoint) for state in self._states}

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
        state = self._only or self._balancer.choose()
        connection = self._kept[state].take()
        if connection is None:
            self._balancer.take_back()
            return None
        return state, connection

    def start(self, state: EndpointState, connection: ClientConnection, head: RequestHead, body: bytes) -> Started:
        """Send a whole request, not HEAD, on the connection that `take_kept` returned.

        What comes back is given to the `listener` of the connection: a response that came whole, or a call to look.
        Then `receive` takes a response that was parsed. `count_response` and `release` follow. Until then `send` may go
        on with the request: to wait with its deadline, for interim responses, and for all that goes wrong.
        """
        self._state.budget.request_count += 1
        connection.send_whole(head.encode(state.authority) + body)
        state.stats.in_flight += 1
        return Started(state, connection, head, body)

    def receive(self, started: Started) -> WholeResponse | None:
        """Take a response that was parsed, and whose body is here whole; None if `send` has to judge it."""
        response = self._client.receive(started.request(), started.head.method)
        return None if response is None else response.to_whole()

    def count_response(self, started: Started, status: int) -> None:
        """Count the response to a request that was started."""
        seconds = time.monotonic() - started.sent_at
        # `Histogram.observe` without the call.
        response_seconds = self._stats.response_seconds
        response_seconds.counts[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        response_seconds.total += seconds
        started.state.stats.requests[status] += 1

    def release(self, started: Started, status: int) -> None:
        """Give the connection back after a response that was received whole, and count the exchange off."""
        connection, started.connection = started.connection, None
        if connection is not None:
            connection.release()
            state = started.state
            state.stats.in_flight -= 1
            if status in FAILURE_STATUSES:
                self._state.record_failure(state, f"status {status}")
            elif state.failures:
                self._state.record_success(state)

    def abandon(self, started: Started, exc: BaseException) -> None:
        """Close a request that was started, unless its connection was given back."""
        if started.connection is not None:
            started.request().close(is_whole=False)
            started.connection = None
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
            self._state.budget.request_count += 1
        tried: list[EndpointState] = []
        attempts_left = self._config.retries.attempts
        while True:
            try:
                if started is not None:
                    state = started.state
                    return await self._send(state, head, body, on_connected, started.request())
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

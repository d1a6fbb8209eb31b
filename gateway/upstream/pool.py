"""A configured upstream at run time: its gate, its endpoints, their health, and who is tried next."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

import aiohttp

from gateway.config import Upstream
from gateway.config.model import Health
from gateway.config.values import Endpoint
from gateway.errors import Fault, FaultKind
from gateway.observe.stats import UpstreamStats
from gateway.transfer import Timers
from gateway.upstream.balancing import Balancer, EndpointState
from gateway.upstream.capacity import CapacityLimiter
from gateway.upstream.client import Client, UpstreamResponse
from gateway.upstream.connection import UpstreamRequest

#: Met before a byte was sent: the next endpoint may be tried.
_UNSENT: Final = frozenset(
    {FaultKind.CONNECT_REFUSED, FaultKind.CONNECT_TIMEOUT, FaultKind.DNS_ERROR, FaultKind.TLS_ERROR}
)


class UpstreamPool:
    """One upstream."""

    def __init__(self, name: str, config: Upstream, stats: UpstreamStats, timers: Timers) -> None:
        self.name = name
        self.framing = config.framing
        self.idle_seconds = config.timeouts.idle
        self.capacity = CapacityLimiter(
            slots=config.max_in_flight,
            max_queued=config.max_queued,
            queue_seconds=config.queue_timeout,
            stats=stats,
        )
        self._client = Client(config.timeouts, timers)
        self._states = [EndpointState(endpoint) for endpoint in config.endpoints]
        self._balancer = Balancer(config.policy, self._states)
        self._health = config.health
        self._stats = stats
        stats.endpoints_up = {str(state.endpoint): True for state in self._states}

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    @property
    def is_available(self) -> bool:
        """Whether at least one endpoint is up."""
        return any(state.is_up for state in self._states)

    async def send(
        self, method: str, make: Callable[[Endpoint], UpstreamRequest], on_chosen: Callable[[Endpoint], None]
    ) -> UpstreamResponse:
        """Send a request to the first endpoint that takes the connection; return its answer, which is to be closed.

        `make` gives the request for an endpoint; it may be called once per endpoint. Raises Fault.
        """
        *others, last = self._balancer.order()
        for state in others:
            try:
                return await self._send(state, method, make, on_chosen)
            except Fault as fault:
                if fault.kind not in _UNSENT:
                    raise
                self._stats.retries[fault.kind.code] += 1
        return await self._send(last, method, make, on_chosen)

    async def _send(
        self,
        state: EndpointState,
        method: str,
        make: Callable[[Endpoint], UpstreamRequest],
        on_chosen: Callable[[Endpoint], None],
    ) -> UpstreamResponse:
        on_chosen(state.endpoint)
        state.in_flight += 1
        try:
            response = await self._client.send(state.endpoint, method, make(state.endpoint))
        except BaseException:
            # Also when cancelled: without an answer nobody else counts it off.
            state.in_flight -= 1
            raise
        response.on_closed = state.leave
        return response

    async def watch_health(self) -> None:
        """Check the endpoints for ever, where the config asks for it."""
        if self._health is None:
            return
        timeout = aiohttp.ClientTimeout(total=None if math.isinf(self._health.timeout) else self._health.timeout)
        async with (
            aiohttp.ClientSession(
                timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(force_close=True)
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            for state in self._states:
                group.create_task(self._watch(session, state, self._health), name=f"health {state.endpoint}")

    async def _watch(self, session: aiohttp.ClientSession, state: EndpointState, health: Health) -> None:
        in_a_row = 0
        while True:
            has_passed = await _passes(session, state.endpoint, health)
            in_a_row = in_a_row + 1 if has_passed is not state.is_up else 0
            if in_a_row >= (health.passes if has_passed else health.fails):
                state.is_up, in_a_row = has_passed, 0
                self._stats.endpoints_up[str(state.endpoint)] = has_passed
            await asyncio.sleep(health.interval)


async def _passes(session: aiohttp.ClientSession, endpoint: Endpoint, health: Health) -> bool:
    try:
        async with session.get(f"{endpoint}{health.path}", allow_redirects=False) as response:
            return response.status < 400  # noqa: PLR2004 (2xx and 3xx pass)
    except (aiohttp.ClientError, OSError):
        return False

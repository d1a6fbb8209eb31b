"""Active health checks: GET a path of every endpoint now and then; any 2xx or 3xx passes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import aiohttp

from gateway.config.model import Health
from gateway.config.values import Endpoint
from gateway.observe.stats import UpstreamStats
from gateway.upstream.balancing import EndpointState


async def check_endpoints(states: Sequence[EndpointState], health: Health, stats: UpstreamStats) -> None:
    """Check the endpoints until cancelled, and record in their states whether they are up."""
    timeout = aiohttp.ClientTimeout(total=None if math.isinf(health.timeout) else health.timeout)
    async with (
        aiohttp.ClientSession(
            timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(force_close=True)
        ) as session,
        asyncio.TaskGroup() as group,
    ):
        for state in states:
            group.create_task(_check_endpoint(session, state, health, stats), name=f"health {state.endpoint}")


async def _check_endpoint(
    session: aiohttp.ClientSession, state: EndpointState, health: Health, stats: UpstreamStats
) -> None:
    contrary_count = 0
    while True:
        has_passed = await _passes(session, state.endpoint, health)
        contrary_count = contrary_count + 1 if has_passed is not state.is_up else 0
        if contrary_count >= (health.passes if has_passed else health.fails):
            state.is_up, contrary_count = has_passed, 0
            stats.endpoints_up[str(state.endpoint)] = has_passed
        await asyncio.sleep(health.interval)


async def _passes(session: aiohttp.ClientSession, endpoint: Endpoint, health: Health) -> bool:
    try:
        async with session.get(f"{endpoint}{health.path}", allow_redirects=False) as response:
            return response.status < 400  # noqa: PLR2004 (2xx and 3xx pass)
    except (aiohttp.ClientError, OSError):
        return False

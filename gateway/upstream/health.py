"""Active health checks: GET a path of every endpoint now and then; any 2xx or 3xx passes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from gateway.config.upstream import Health
from gateway.config.values import Endpoint
from gateway.errors import Fault
from gateway.transfer import descriptor_fault, exhaustion_fault, open_socket
from gateway.upstream.balancing import EndpointState
from gateway.upstream.resolver import Resolver
from gateway.upstream.state import UpstreamState

#: How long checks that failed with a bug pause before they start again.
_RESTART_SECONDS: Final = 1.0
_log = logging.getLogger("gateway")


@dataclass(slots=True)
class CheckHistory:
    """Decides from the results of checks whether an endpoint is up."""

    passes: int
    fails: int
    is_up: bool
    _contrary_count: int = 0

    def record(self, *, has_passed: bool) -> bool:
        """Record a result; return whether `is_up` has changed by it."""
        if has_passed is self.is_up:
            self._contrary_count = 0
            return False
        self._contrary_count += 1
        if self._contrary_count < (self.passes if has_passed else self.fails):
            return False
        self.is_up, self._contrary_count = has_passed, 0
        return True


async def watch_endpoints(
    upstream: UpstreamState, states: Sequence[EndpointState], health: Health, resolver: Resolver
) -> None:
    """Check the endpoints until cancelled; start again after a bug, which would end the checks for good."""
    while True:
        try:
            await check_endpoints(upstream, states, health, resolver)
        except Exception:
            # Whatever the bug is: without checks the endpoints would stay as they were last seen.
            _log.exception("health checks of upstream %s failed: they start again", upstream.stats.upstream)
        await asyncio.sleep(_RESTART_SECONDS)


async def check_endpoints(
    upstream: UpstreamState, states: Sequence[EndpointState], health: Health, resolver: Resolver
) -> None:
    """Check the endpoints until cancelled, and record in their states whether they are up."""
    timeout = aiohttp.ClientTimeout(total=None if math.isinf(health.timeout) else health.timeout)
    connector = aiohttp.TCPConnector(
        force_close=True, use_dns_cache=False, resolver=resolver, socket_factory=open_socket
    )
    async with (
        aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), connector=connector) as session,
        asyncio.TaskGroup() as group,
    ):
        for state in states:
            group.create_task(_check_endpoint(session, upstream, state, health), name=f"health {state.endpoint}")


async def _check_endpoint(
    session: aiohttp.ClientSession, upstream: UpstreamState, state: EndpointState, health: Health
) -> None:
    history = CheckHistory(health.passes, health.fails, state.is_up)
    while True:
        # A check that the gateway could not make says nothing of the endpoint.
        with contextlib.suppress(_NotCheckedError):
            failure = await _check(session, state.endpoint, health)
            if history.record(has_passed=failure is None):
                if failure is None:
                    upstream.mark_up(state, f"{_count(health.passes)} passed")
                else:
                    upstream.mark_down(state, f"{_count(health.fails)} failed: {failure}")
        await asyncio.sleep(health.interval)


async def _check(session: aiohttp.ClientSession, endpoint: Endpoint, health: Health) -> str | None:
    """Return why an endpoint fails the check, None if it passes. Raises _NotCheckedError."""
    try:
        async with session.get(f"{endpoint}{health.path}", allow_redirects=False) as response:
            return None if response.status < 400 else f"status {response.status}"  # noqa: PLR2004 (2xx and 3xx pass)
    except TimeoutError:
        return f"no response within {health.timeout:g} s"
    except aiohttp.ClientConnectorDNSError:
        if descriptor_fault() is not None:
            raise _NotCheckedError from None
        return "the name does not resolve"
    except Fault:
        # No thread could be started to look up the name.
        raise _NotCheckedError from None
    except aiohttp.ServerDisconnectedError:
        return "the connection was closed without a response"
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        if isinstance(exc, OSError) and exhaustion_fault(exc) is not None:
            raise _NotCheckedError from None
        # asyncio and the idna codec raise ValueError for names that cannot be looked up.
        return _describe(exc)


class _NotCheckedError(Exception):
    """The gateway is out of descriptors, memory or threads."""


def _describe(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.errno is not None and exc.errno in errno.errorcode:
        return os.strerror(exc.errno).lower()
    return str(exc) or type(exc).__name__


def _count(checks: int) -> str:
    return "1 check" if checks == 1 else f"{checks} checks"

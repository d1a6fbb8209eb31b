"""The operations port. It is separate from the traffic port, so that clients cannot reach it.

/metrics   Prometheus text, or OpenMetrics if Accept lists it
/healthz   200 while the process runs
/readyz    200 if the gateway accepts traffic; 503 while starting, draining, or without a route to serve; with reasons
/drain     with `ops.drain: on`: drain, and respond when that is done; the process stays until SIGTERM
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.config.model import Ops
from gateway.observe.prometheus import render
from gateway.observe.stats import Stats
from gateway.observe.waits import LiveWaits
from gateway.ops.access import find_refusal

_UNAUTHORIZED: Final = 401


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the gateway accepts traffic, and every reason why it does not, or not all of it; one line each."""

    is_ready: bool
    reasons: tuple[str, ...]


class OpsApp:
    """The application of the ops port.

    `drain` drains once, however often it is called, and returns how many exchanges are left. `settings` returns those
    in force.
    """

    def __init__(
        self,
        stats: Stats,
        live_waits: LiveWaits,
        *,
        readiness: Callable[[], Readiness],
        settings: Callable[[], Ops],
        drain: Callable[[], Awaitable[int]],
    ) -> None:
        self._stats = stats
        self._live_waits = live_waits
        self._readiness = readiness
        self._settings = settings
        self._drain = drain
        # Rendering many series takes tens of milliseconds: a thread keeps the event loop free for transfers.
        self._renderer = ThreadPoolExecutor(1, "metrics")

    def make(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(middlewares=[self._check_access])
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        # A HEAD request asks for nothing but the head: it must not drain.
        app.router.add_get("/drain", self._drain_and_respond, allow_head=False)
        return app

    def close(self) -> None:
        """Stop the rendering thread; waits for a scrape in progress."""
        self._renderer.shutdown(wait=True)

    @web.middleware
    async def _check_access(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = find_refusal(request.method, request.path, request.headers, self._settings())
        if refusal is None:
            return await handler(request)
        headers = {"WWW-Authenticate": "Bearer"} if refusal.status == _UNAUTHORIZED else None
        return web.Response(status=refusal.status, text=refusal.text, headers=headers)

    async def _metrics(self, request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        loop = asyncio.get_running_loop()
        self._live_waits.charge()
        body, content_type = await loop.run_in_executor(self._renderer, render, self._stats, accept)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        readiness = self._readiness()
        first = ["ok"] if readiness.is_ready else []
        text = "".join(f"{line}\n" for line in [*first, *readiness.reasons])
        return web.Response(status=200 if readiness.is_ready else 503, text=text)

    async def _drain_and_respond(self, _request: web.Request) -> web.Response:
        if not self._settings().drain:
            return web.Response(status=404, text="/drain is off: set ops.drain to on\n")
        count = await self._drain()
        return web.Response(text=f"drained, {count} exchanges left\n")

"""The operations port. It is separate from the traffic port, so that clients cannot reach it.

/metrics   Prometheus text, or OpenMetrics if Accept lists it
/healthz   200 while the process runs
/readyz    200 if the gateway accepts traffic; 503 with reasons while starting, draining or without a healthy endpoint
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from gateway.observe.prometheus import make_registry, render
from gateway.observe.stats import Stats
from gateway.observe.waits import LiveWaits

#: Returns the reasons why the gateway is not ready, one line each; empty if it is ready.
Reasons = Callable[[], list[str]]


class OpsApp:
    """The application of the ops port."""

    def __init__(self, stats: Stats, live_waits: LiveWaits, reasons: Reasons) -> None:
        self._registry = make_registry(stats)
        self._live_waits = live_waits
        self._reasons = reasons
        # Rendering many series takes tens of milliseconds: a thread keeps the event loop free for transfers.
        self._renderer = ThreadPoolExecutor(1, "metrics")

    def make(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        return app

    def close(self) -> None:
        """Stop the rendering thread; waits for a scrape in progress."""
        self._renderer.shutdown(wait=True)

    async def _metrics(self, request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        loop = asyncio.get_running_loop()
        self._live_waits.charge()
        body, content_type = await loop.run_in_executor(self._renderer, render, self._registry, accept)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        reasons = self._reasons()
        if reasons:
            return web.Response(status=503, text="".join(f"{reason}\n" for reason in reasons))
        return web.Response(text="ok\n")

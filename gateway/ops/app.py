"""The second port, never the traffic's.

/metrics   Prometheus text, OpenMetrics when asked for
/healthz   200 while the process serves
/readyz    200 when it should get traffic; 503 with reasons while starting, draining or without a healthy endpoint
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from gateway.observe.prometheus import make_registry, render
from gateway.observe.stats import Stats

#: Returns why the gateway should get no traffic; nothing if it should.
Reasons = Callable[[], list[str]]


class OpsApp:
    """The application of the ops port."""

    def __init__(self, stats: Stats, reasons: Reasons) -> None:
        self._registry = make_registry(stats)
        self._reasons = reasons
        # A thread of its own: rendering many series takes tens of milliseconds, which chunks need not wait for.
        self._renderer = ThreadPoolExecutor(1, "metrics")

    def make(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        return app

    def close(self) -> None:
        """End the rendering thread."""
        self._renderer.shutdown(wait=True)

    async def _metrics(self, request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        loop = asyncio.get_running_loop()
        body, content_type = await loop.run_in_executor(self._renderer, render, self._registry, accept)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        reasons = self._reasons()
        if reasons:
            return web.Response(status=503, text="".join(f"{reason}\n" for reason in reasons))
        return web.Response(text="ok\n")

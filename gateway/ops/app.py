"""The operations port. It is separate from the traffic port, so that clients cannot reach it.

/metrics   Prometheus text, or OpenMetrics if Accept lists it
/healthz   200 while the process runs
/readyz    200 if the gateway accepts traffic; 503 while starting, draining, or without a route to serve; with reasons
/drain     with `ops.drain: on`: drain, and respond when that is done; the process stays until SIGTERM
/          the live page
/api/...   what happens now, as JSON, and the cancelling of transfers: `api`
"""

from __future__ import annotations

from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.ops.access import find_refusal
from gateway.ops.api import Api
from gateway.ops.page import Page
from gateway.ops.sending import Responses
from gateway.ops.view import OpsView

_UNAUTHORIZED: Final = 401
#: A page from here loads and reaches nothing from elsewhere, has no script or style within itself, and is in no frame.
_CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SECURITY: Final = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class OpsApp:
    """The application of the ops port."""

    def __init__(self, view: OpsView) -> None:
        self._view = view
        self._responses = Responses()

    def make(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(middlewares=[self._check_access])
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        # A HEAD request asks for nothing but the head: it must not drain.
        app.router.add_get("/drain", self._drain_and_respond, allow_head=False)
        Api(self._view).add_to(app)
        Page().add_to(app)
        app.on_response_prepare.append(_add_security_headers)
        return app

    @web.middleware
    async def _check_access(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = find_refusal(request.method, request.path, request.headers, self._view.settings())
        if refusal is None:
            return await self._responses.serve(request, handler)
        headers = {"WWW-Authenticate": "Bearer"} if refusal.status == _UNAUTHORIZED else None
        return web.Response(status=refusal.status, text=refusal.text, headers=headers)

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = await self._view.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        readiness = self._view.readiness()
        first = ["ok"] if readiness.is_ready else []
        text = "".join(f"{line}\n" for line in [*first, *readiness.reasons])
        return web.Response(status=200 if readiness.is_ready else 503, text=text)

    async def _drain_and_respond(self, _request: web.Request) -> web.Response:
        if not self._view.settings().drain:
            return web.Response(status=404, text="/drain is off: set ops.drain to on\n")
        count = await self._view.drain()
        return web.Response(text=f"drained, {count} exchanges left\n")


async def _add_security_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_SECURITY)

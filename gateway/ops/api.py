"""The API of the ops port: what the live page and `gateway top` show, for any client. Its OpenAPI is openapi.json."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from gateway.observe.live import worker_of
from gateway.ops.events import EventStream
from gateway.ops.snapshot import Snapshots
from gateway.ops.view import OpsView

_INTERVAL_SECONDS: Final = 1.0
#: Read when the module is loaded: nothing is read from a disk while the loop runs.
_OPENAPI: Final = Path(__file__).with_name("openapi.json").read_bytes()
_log = logging.getLogger("gateway.ops")


class Api:
    """The handlers below /api."""

    def __init__(self, view: OpsView) -> None:
        self._view = view
        self._snapshots = Snapshots(view)
        self._events = EventStream(self._snapshots.everything)

    def add_to(self, app: web.Application) -> None:
        """Add the paths to an application, and record the history while it runs."""
        router, snapshots = app.router, self._snapshots
        for name, make in {
            "transfers": snapshots.transfers,
            "routes": snapshots.routes,
            "upstreams": snapshots.upstreams,
            "history": snapshots.points,
            "failures": snapshots.failures,
            "snapshot": snapshots.everything,
            "config": lambda: asyncio.to_thread(snapshots.config),
        }.items():
            router.add_get(f"/api/{name}", _responder(make))
        router.add_get("/api/transfers/{id}", self._transfer)
        router.add_delete("/api/transfers/{id}", self._cancel)
        router.add_get("/api/events", self._events.serve, allow_head=False)
        router.add_get("/api/openapi.json", _openapi)
        app.cleanup_ctx.append(self._record_history)
        app.on_shutdown.append(self._close)

    async def _transfer(self, request: web.Request) -> web.Response:
        transfer_id = request.match_info["id"]
        row = await self._snapshots.transfer(transfer_id)
        return _json(row) if row is not None else _not_found(transfer_id)

    async def _cancel(self, request: web.Request) -> web.Response:
        transfer_id = request.match_info["id"]
        operator = request.remote or "an unknown address"
        if worker_of(transfer_id) is None or not await self._view.cancel(transfer_id, operator):
            return _not_found(transfer_id)
        return _json(json.dumps({"id": transfer_id, "outcome": "cancelled"}).encode(), status=202)

    async def _record_history(self, _app: web.Application) -> AsyncIterator[None]:
        task = asyncio.get_running_loop().create_task(self._record(), name="history")
        yield
        task.cancel()
        await asyncio.wait([task])

    async def _record(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            try:
                await self._snapshots.record()
            except Exception:
                # Whatever the bug is: one point is missing, and not all that follow.
                _log.exception("a point of the history could not be recorded")

    async def _close(self, _app: web.Application) -> None:
        await self._events.close()


def _responder(make: Callable[[], Awaitable[bytes]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def respond(_request: web.Request) -> web.Response:
        return _json(await make())

    return respond


async def _openapi(_request: web.Request) -> web.Response:
    return _json(_OPENAPI)


def _json(body: bytes, *, status: int = 200, kind: str = "application/json") -> web.Response:
    headers = {"Content-Type": kind, "Cache-Control": "no-store"}
    return web.Response(status=status, body=body, headers=headers)


def _not_found(transfer_id: str) -> web.Response:
    detail = f"No transfer {transfer_id[:100]!r} is under way: it has ended, or there never was one."
    document = {"title": "No such transfer", "status": 404, "detail": detail}
    return _json(json.dumps(document).encode(), status=404, kind="application/problem+json")

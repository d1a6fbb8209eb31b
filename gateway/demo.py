"""The demo upstream: a small service that reads a body as a stream and responds with JSON, as an ML service does.

POST or PUT, any path   responds with field, name, type, size and SHA-256 of every file; a raw body is one file
GET /bytes/N            responds with N bytes and a Content-Length
GET /events             responds with five Server-Sent Events, one per second
GET, any other path     responds with a help text

It runs as a process of its own (`python -m gateway.demo PORT`), so that its CPU time is not counted as the gateway's.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
import math
import socket
import sys
from typing import Any, Final

from aiohttp import web
from aiohttp.streams import StreamReader

from gateway.config import Limits
from gateway.errors import Fault
from gateway.multipart import FormContent, FormParts, PartKind, boundary_of

_BLOCK: Final = bytes(range(256)) * 1024
#: No limits: the gateway enforces them.
_LIMITS: Final = Limits(max_body=math.inf, max_part=math.inf, max_parts=10_000)


async def _describe(request: web.Request) -> web.StreamResponse:
    """Respond with a description of the uploaded files."""
    try:
        if request.content_type == "multipart/form-data":
            described = await _read_form(request)
        else:
            digest, size = hashlib.sha256(), 0
            while chunk := await request.content.readany():
                digest.update(chunk)
                size += len(chunk)
            described = {"files": [_file(None, None, request.content_type, size, digest.hexdigest())], "fields": {}}
    except Fault as fault:
        return web.json_response({"error": fault.detail}, status=fault.status)
    return web.json_response(described, dumps=_pretty)


class _DemoBody:
    """A body as the source of a form."""

    def __init__(self, content: StreamReader) -> None:
        self.pull = content.readany

    async def take_turn(self) -> None:
        """Let other requests run."""
        await asyncio.sleep(0)


async def _read_form(request: web.Request) -> dict[str, Any]:
    boundary = boundary_of(request.headers["Content-Type"])
    content = FormContent(boundary, _LIMITS, "demo", _DemoBody(request.content))
    files: list[dict[str, Any]] = []
    fields: dict[str, str] = {}
    async for part in FormParts(content, boundary, _LIMITS, "demo"):
        digest, text = hashlib.sha256(), bytearray()
        while data := await part.read():
            digest.update(data)
            if part.kind is PartKind.FIELD:
                text += data
        name = part.disposition.name
        if part.kind is PartKind.FIELD:
            fields[name] = text.decode(errors="replace")
        else:
            files.append(_file(name, part.disposition.filename, part.content_type, part.size, digest.hexdigest()))
    return {"files": files, "fields": fields}


def _file(field: str | None, name: str | None, kind: str | None, size: int, sha256: str) -> dict[str, Any]:
    return {"field": field, "name": name, "type": kind, "size": size, "sha256": sha256}


async def _bytes(request: web.Request) -> web.StreamResponse:
    """Respond with the requested number of bytes."""
    left = int(request.match_info["count"])
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    response.content_length = left
    await response.prepare(request)
    while left:
        block = _BLOCK[:left]
        await response.write(block)
        left -= len(block)
    return response


async def _events(request: web.Request) -> web.StreamResponse:
    """Respond with five events, one per second."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(5):
        await response.write(b"data: token %d\n\n" % number)
        await asyncio.sleep(1)
    return response


async def _welcome(_request: web.Request) -> web.StreamResponse:
    """Respond with a help text."""
    return web.Response(text="The demo upstream: POST files to it, or GET /bytes/1000 and /events.\n")


def _pretty(document: Any) -> str:
    return json.dumps(document, indent=2) + "\n"


def make_app() -> web.Application:
    """Return the demo as an aiohttp application."""
    app = web.Application(client_max_size=0)
    app.router.add_get("/bytes/{count:[0-9]+}", _bytes)
    app.router.add_get("/events", _events)
    app.router.add_get("/{rest:.*}", _welcome)
    app.router.add_route("POST", "/{rest:.*}", _describe)
    app.router.add_route("PUT", "/{rest:.*}", _describe)
    return app


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(
        prog="gateway.demo", description="Run the demo upstream, which describes the files it receives."
    )
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--socket", type=int, help="descriptor of a listening socket, in place of a host and port")
    arguments = parser.parse_args()
    # Without this, aiohttp logs an error for every client that closes its connection early.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    where: dict[str, Any] = {"host": arguments.host, "port": arguments.port}
    if arguments.socket is not None:
        where = {"sock": socket.socket(fileno=arguments.socket)}
    web.run_app(make_app(), **where, print=None, access_log=None)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The obvious aiohttp solution, as a peer: MultipartReader re-encoded part by part into a client request."""

from __future__ import annotations

import ssl
import sys
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web


async def _parts(request: web.Request, boundary: bytes) -> AsyncIterator[bytes]:
    reader = await request.multipart()
    while (part := await reader.next()) is not None:
        assert isinstance(part, aiohttp.BodyPartReader)
        fields = b"".join(f"{name}: {value}\r\n".encode() for name, value in part.headers.items())
        yield b"--" + boundary + b"\r\n" + fields + b"\r\n"
        while chunk := await part.read_chunk(65536):
            yield chunk
        yield b"\r\n"
    yield b"--" + boundary + b"--\r\n"


async def _proxy(request: web.Request) -> web.StreamResponse:
    session: aiohttp.ClientSession = request.app["session"]
    base: str = request.app["base"]
    headers = {name: value for name, value in request.headers.items() if name.lower() in ("content-type", "accept")}
    data: object = None
    if request.content_type == "multipart/form-data":
        boundary = request.headers["Content-Type"].partition("boundary=")[2]
        data = _parts(request, boundary.encode())
    elif request.can_read_body:
        data = request.content.iter_chunked(65536)
    async with session.request(request.method, base + request.path_qs, headers=headers, data=data) as answer:
        response = web.StreamResponse(status=answer.status)
        if answer.content_length is not None:
            response.content_length = answer.content_length
        await response.prepare(request)
        async for chunk in answer.content.iter_chunked(65536):
            await response.write(chunk)
        return response


def main() -> None:
    """Serve PORT in front of UPSTREAM_PORT; with a PEM file, TLS on both sides."""
    port, upstream = int(sys.argv[1]), int(sys.argv[2])
    context = None
    if len(sys.argv) > 3:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(sys.argv[3])

    async def start(app: web.Application) -> None:
        app["session"] = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        app["base"] = f"{'https' if context else 'http'}://127.0.0.1:{upstream}"

    async def stop(app: web.Application) -> None:
        await app["session"].close()

    app = web.Application(client_max_size=0)
    app.on_startup.append(start)
    app.on_cleanup.append(stop)
    app.router.add_route("*", "/{rest:.*}", _proxy)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, ssl_context=context)


if __name__ == "__main__":
    main()

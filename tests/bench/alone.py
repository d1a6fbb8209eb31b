"""Lower bounds, as peers: programs that make only the calls that no proxy can do without.

`kernel alone` splices between two blocking sockets through a pipe of 1 MiB, sends files with sendfile and stores bodies
with write and fsync, unhashed: no limits, no metrics, no timeouts, and one client at a time. `aiohttp alone` answers
with aiohttp's server what aiohttp's client session received: no headers are passed on, nothing is checked.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import sys
from pathlib import Path

import aiohttp
from aiohttp import web

from tests.bench.load import length_of, read_head

_PIPE_BYTES = 2**20
_STEP_BYTES = 4 * 2**20


def _serve_kernel(port: int, upstream: int, files: Path) -> None:
    inside, outside = os.pipe()
    fcntl.fcntl(outside, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    with socket.create_server(("127.0.0.1", port), backlog=64) as listener:
        while True:
            client = listener.accept()[0]
            with client, socket.create_connection(("127.0.0.1", upstream)) as far:
                try:
                    head, rest = read_head(client)
                except ConnectionError:
                    # A probe of the port, without a request.
                    continue
                target = head.split(b" ")[1].decode()
                if target.startswith("/files/"):
                    _send_file(client, files / target.removeprefix("/files/"))
                    continue
                if target.startswith("/store"):
                    _store(client, (head, rest), files / ".stored")
                    continue
                _pass_on(client, far, (head, rest), (inside, outside))
                _pass_on(far, client, read_head(far), (inside, outside))


def _pass_on(source: socket.socket, sink: socket.socket, begun: tuple[bytes, bytes], pipe: tuple[int, int]) -> None:
    head, rest = begun
    sink.sendall(head + b"\r\n\r\n" + rest)
    left = length_of(head) - len(rest)
    while left > 0:
        moved = held = os.splice(source.fileno(), pipe[1], min(left, _PIPE_BYTES), flags=os.SPLICE_F_MOVE)
        if not moved:
            return
        while held:
            held -= os.splice(pipe[0], sink.fileno(), held, flags=os.SPLICE_F_MOVE)
        left -= moved


def _send_file(client: socket.socket, path: Path) -> None:
    with path.open("rb") as file:
        size = path.stat().st_size
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        sent = 0
        while sent < size:
            sent += os.sendfile(client.fileno(), file.fileno(), sent, min(size - sent, _STEP_BYTES))


def _store(client: socket.socket, begun: tuple[bytes, bytes], path: Path) -> None:
    head, rest = begun
    left = length_of(head) - len(rest)
    buffer = memoryview(bytearray(_PIPE_BYTES))
    with path.with_suffix(".new").open("wb", buffering=0) as file:
        file.write(rest)
        while left and (count := client.recv_into(buffer, min(left, len(buffer)))):
            file.write(buffer[:count])
            left -= count
        os.fsync(file.fileno())
    path.with_suffix(".new").replace(path)
    client.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")


async def _serve_aiohttp(port: int, upstream: int) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(connector=connector, cookie_jar=jar, auto_decompress=False) as session:

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            url = f"http://127.0.0.1:{upstream}{request.raw_path}"
            async with session.request(request.method, url, allow_redirects=False) as answer:
                response = web.StreamResponse(status=answer.status)
                response.content_length = answer.content_length
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                return response

        server = web.Server(handle, access_log=None)
        await asyncio.get_running_loop().create_server(server, "127.0.0.1", port, backlog=512)
        await asyncio.Event().wait()


def main() -> None:
    """Serve KIND (kernel or aiohttp) on PORT in front of UPSTREAM_PORT, with FILES."""
    kind, port, upstream, files = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    if kind == "kernel":
        _serve_kernel(port, upstream, files)
    else:
        asyncio.run(_serve_aiohttp(port, upstream))


if __name__ == "__main__":
    main()

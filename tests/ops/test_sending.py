"""Clients of the ops port that read slowly, or not at all, hold little, and not for long."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from gateway.ops import sending
from gateway.ops.sending import Responses
from tests.peers import TIMEOUT_SECONDS, Wire, wait_until

BODY = bytes(range(256)) * 2**15


class Server:
    """A port whose every response is large."""

    def __init__(self, port: int, responses: Responses) -> None:
        self.port = port
        self.responses = responses

    @property
    def count(self) -> int:
        return len(self.responses._begun)

    async def ask(self, path: str = "/", method: str = "GET") -> Wire:
        """Send a request; nothing is read, and the kernel takes little of the response."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        # A small limit: asyncio reads ahead.
        wire = Wire(*await asyncio.open_connection(sock=sock, limit=1024))
        await wire.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return wire


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    responses = Responses()
    held: list[asyncio.BaseTransport] = []

    @web.middleware
    async def serve(request: web.Request, handler: object) -> web.StreamResponse:
        async def respond(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            held.append(request.transport)
            return web.Response(body=b"ok" if request.path == "/healthz" else BODY, headers={"X-A": "b"})

        del handler
        return await responses.serve(request, respond)

    runner = web.AppRunner(web.Application(middlewares=[serve]), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield Server(runner.addresses[0][1], responses)
    assert all(transport.get_write_buffer_size() < 2**18 for transport in held)  # type: ignore[attr-defined]
    await runner.cleanup()


async def test_large_response_arrives_whole(server: Server) -> None:
    wire = await server.ask()
    head, _, body = (await wire.read_to_end()).partition(b"\r\n\r\n")
    await wire.close()
    assert b" 200 OK\r\n" in head
    assert b"\r\nX-A: b\r\n" in head
    assert b"Content-Length: %d" % len(BODY) in head
    assert body == BODY
    wire = await server.ask(method="HEAD")
    head, _, body = (await wire.read_to_end()).partition(b"\r\n\r\n")
    await wire.close()
    assert b"Content-Length: %d" % len(BODY) in head
    assert body == b""


async def test_client_that_reads_nothing_is_cut(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "SEND_SECONDS", 0.05)
    wire = await server.ask()
    await wait_until(lambda: server.count == 1)
    await wait_until(lambda: server.count == 0)
    assert len(await wire.read_to_end()) < len(BODY)
    await wire.close()


async def test_clients_that_read_nothing_keep_no_other_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 of them held 2.4 GB for ever."""
    async with contextlib.AsyncExitStack() as stack:
        stalled = []
        for _ in range(sending.MAX_RESPONSES):
            stalled.append(await server.ask())
            stack.push_async_callback(stalled[-1].close)
        await wait_until(lambda: server.count == sending.MAX_RESPONSES)
        # None is old enough to be cut.
        monkeypatch.setattr(sending, "STALLED_SECONDS", 1000.0)
        for path, status in (("/", b" 503 "), ("/healthz", b" 200 ")):
            wire = await server.ask(path)
            assert status in (await wire.read_to_end()).split(b"\r\n")[0]
            await wire.close()
        monkeypatch.setattr(sending, "STALLED_SECONDS", 0.0)
        wire = await server.ask()
        assert (await wire.read_to_end()).endswith(BODY)
        await wire.close()
        assert server.count == sending.MAX_RESPONSES - 1
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert len(await stalled[0].read_to_end()) < len(BODY)

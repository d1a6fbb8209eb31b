"""aiohttp's two protocols over real loopback connections, each with a raw socket as its peer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.streams import StreamReader
from yarl import URL

from gateway.aiohttp_seam import ClientConnection, LiveConnector, PoolRequest, ServerConnection
from gateway.aiohttp_seam.feed import Turns
from gateway.downstream.leaving import LeaveWatch
from gateway.http.whole_response import WholeResponse
from gateway.transfer import Turns as LoopTurns

PATIENCE_SECONDS = 20.0
#: How long a connection is kept.
KEPT_SECONDS = 60.0


@contextlib.contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield both ends of a TCP connection; the first is for a transport."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as peer:
        ours, _ = listener.accept()
        ours.setblocking(False)
        peer.setblocking(False)
        yield ours, peer


def reset(peer: socket.socket) -> None:
    """Close with RST instead of FIN."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


async def settle() -> None:
    """Let the loop look for input: loopback delivers at once, so what could be received then was."""
    for _ in range(3):
        await asyncio.sleep(0)


class Listening:
    """A listener of an upstream connection, which takes whole responses or does not."""

    def __init__(self, *, takes_whole: bool = True) -> None:
        self._takes_whole = takes_whole
        #: The response that came whole.
        self.whole: WholeResponse | None = None
        self.has_come = asyncio.Event()

    def take_whole(self, response: WholeResponse, /) -> bool:
        if self._takes_whole:
            self.whole = response
            self.has_come.set()
        return self._takes_whole

    def look(self) -> None:
        self.has_come.set()


class OneByOne:
    """Turns that are taken by the test: each step by a call of the next of `steps`."""

    def __init__(self) -> None:
        self.steps: deque[Callable[[], None]] = deque()

    def has_time(self) -> bool:
        return False

    async def wait(self) -> None:
        """For pipelined messages; the steps are those of the feed."""

    def call(self, step: Callable[[], None], /) -> None:
        self.steps.append(step)


class Received(NamedTuple):
    """A request that was received."""

    message: RawRequestMessage
    content: StreamReader


@dataclass
class Serving:
    """A server connection, its peer, and the requests its handler got."""

    connection: ServerConnection
    peer: socket.socket
    requests: asyncio.Queue[Received] = field(default_factory=asyncio.Queue)
    finish: asyncio.Event = field(default_factory=asyncio.Event)
    refused: list[BaseException] = field(default_factory=list)

    async def request(self) -> Received:
        return await asyncio.wait_for(self.requests.get(), PATIENCE_SECONDS)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.peer, data)


async def never(request: web.BaseRequest) -> web.StreamResponse:
    raise NotImplementedError(request)


@contextlib.asynccontextmanager
async def serve(turns: Turns | None = None) -> AsyncIterator[Serving]:
    """Serve one connection; its handler waits for `finish`, then responds 200."""
    turns = turns or LoopTurns()
    loop = asyncio.get_running_loop()

    class Handled(ServerConnection):
        async def handle(self, message: Any, body: StreamReader) -> bool:
            serving.requests.put_nowait(Received(message, body))
            await serving.finish.wait()
            assert self.transport is not None
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return True

        async def refuse(self, exc: BaseException) -> None:
            serving.refused.append(exc)

    server = web.Server(never, handler_cancellation=True)

    def make() -> ServerConnection:
        return Handled(
            server,
            loop=loop,
            turns=turns,
            receive_bytes=2**16,
            watch=watch,
            access_log=None,
            auto_decompress=False,
            read_bufsize=2**15,
        )

    with tcp_pair() as (ours, peer), contextlib.closing(LeaveWatch()) as watch:
        transport, connection = await loop.connect_accepted_socket(make, ours)
        serving = Serving(connection, peer)
        try:
            yield serving
        finally:
            transport.abort()
            await server.shutdown()


class Upstream:
    """A listener, and a connector for it."""

    def __init__(self, listener: socket.socket, turns: Turns | None) -> None:
        self._listener = listener
        host, port = listener.getsockname()
        self.address = PoolRequest(URL.build(scheme="http", host=host, port=port), kept_seconds=KEPT_SECONDS)
        self.connector = LiveConnector(turns or LoopTurns(), lambda seconds: None, limit=0)

    async def connect(self, *, may_have_body: bool = True) -> ClientConnection:
        """Return a connection, ready for a response."""
        connection = await self.connector.take(self.address, PATIENCE_SECONDS)
        connection.expect_response(may_have_body=may_have_body)
        return connection

    def accept(self) -> socket.socket:
        peer, _ = self._listener.accept()
        return peer


@contextlib.asynccontextmanager
async def listen(turns: Turns | None = None) -> AsyncIterator[Upstream]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = Upstream(listener, turns)
        try:
            yield upstream
        finally:
            await upstream.connector.close()
            await settle()

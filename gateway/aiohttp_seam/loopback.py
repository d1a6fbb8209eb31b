"""Connections on loopback, for `selftest`: no TLS, no names, and nothing of the gateway above this package."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, NamedTuple

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.streams import StreamReader

from gateway.aiohttp_seam.messages import Take, no_request
from gateway.aiohttp_seam.server import OnLeave, ServerConnection
from gateway.aiohttp_seam.transports import connect_accepted

RECEIVE_BYTES: Final = 4096
#: Small, so that a few bytes reach the limits of aiohttp's flow control.
_READ_BUFFER_BYTES: Final = 64


class Watched(set[int]):
    """The descriptors that are watched."""

    def start(self, descriptor: int, on_leave: OnLeave) -> None:
        """Add a descriptor."""
        del on_leave
        self.add(descriptor)

    def stop(self, descriptor: int, on_leave: OnLeave) -> None:
        """Remove a descriptor."""
        del on_leave
        self.discard(descriptor)


class NoLimit:
    """Time for every step."""

    def has_time(self) -> bool:
        """Return True."""
        return True

    async def wait(self) -> None:
        """Return at once."""

    def call(self, step: Callable[[], None]) -> None:
        """Call it now."""
        step()


class Received(NamedTuple):
    """A request that was received."""

    message: RawRequestMessage
    content: StreamReader


class _Handled(ServerConnection):
    """Has a request handled without end."""

    handled: asyncio.Future[Received]

    async def handle(self, message: Any, body: StreamReader) -> bool:
        """Keep the request until the connection is lost."""
        self.handled.set_result(Received(message, body))
        await asyncio.get_running_loop().create_future()
        return False


@contextlib.asynccontextmanager
async def serving_one(
    take: Take | None = None,
) -> AsyncIterator[tuple[asyncio.Future[Received], ServerConnection, socket.socket]]:
    """Serve one connection on loopback; yield the request that is handled, once there is one, and both ends."""
    loop = asyncio.get_running_loop()
    server = web.Server(no_request, handler_cancellation=True)
    connection = _Handled(
        server,
        loop=loop,
        turns=NoLimit(),
        receive_bytes=RECEIVE_BYTES,
        watch=Watched(),
        take=take,
        access_log=None,
        auto_decompress=False,
        read_bufsize=_READ_BUFFER_BYTES,
        lingering_time=0,
    )
    connection.handled = loop.create_future()
    with tcp_pair() as (ours, peer):
        transport = connect_accepted(ours, peer.getsockname(), connection)
        try:
            yield connection.handled, connection, peer
        finally:
            transport.abort()
            await server.shutdown()


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    """Yield a listening socket."""
    try:
        listener = socket.create_server(("127.0.0.1", 0))
    except OSError:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    with listener:
        yield listener


@contextlib.contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield both ends of a TCP connection: one to give to a transport (which closes it), one to use as the peer."""
    with listening() as listener, socket.create_connection(listener.getsockname()[:2]) as peer:
        ours, _ = listener.accept()
        yield ours, peer

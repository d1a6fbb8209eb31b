"""A client's connection: limits of its heads, and the refusal of a head that cannot be read.

Gaps of aiohttp's server protocol are closed in `gateway.aiohttp_seam.server`, and two more here (aiohttp 3.14.5):

- A malformed head gets a response with the parser's internals as text: here it is a problem document like any other.
- An unknown keyword makes aiohttp fall back to defaults with only a warning: here it is an error.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMethod, BadStatusLine, HttpProcessingError, LineTooLong
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from gateway.aiohttp_seam import HeadTooLarge, Message, ServerConnection, Take, no_request
from gateway.downstream.leaving import LeaveWatch
from gateway.errors import Fault, FaultKind
from gateway.http.request_head import MAX_HEAD_BYTES
from gateway.transfer import Turns

#: Responds to a request; returns whether its connection may be kept.
Handle = Callable[[ServerConnection, Message, StreamReader], Awaitable[bool]]
#: Responds to a request whose head could not be read.
Refuse = Callable[[ServerConnection, Fault], Awaitable[None]]

#: Also the time a client has for its request head: nginx's client_header_timeout and keepalive_timeout are 60-75 s.
KEEPALIVE_SECONDS: Final = 60.0
#: What a connection may hold before its body is read: one receive, and twice this.
READ_BUFFER_BYTES: Final = 32 * 1024
#: Received per call before a body is read; many uploads that begin at once hold one receive each.
RECEIVE_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 8190
MAX_HEADERS: Final = 100
#: aiohttp 3.14.5 quotes the request line: a method that llhttp does not know, or knows as one of RTSP.
_UNKNOWN_METHOD: Final = re.compile(r"""\n\n +b['"][!#$%&'*+.^_`|~0-9A-Za-z-]+ |Invalid method for HTTP""")


class TrafficConnection(ServerConnection):
    """One client's connection."""

    __slots__ = ("_handle", "_refuse")

    def __init__(self, server: TrafficServer, *, loop: asyncio.AbstractEventLoop, watch: LeaveWatch) -> None:
        super().__init__(
            server,
            loop=loop,
            turns=server.turns,
            watch=watch,
            take=server.take,
            # The listening socket has it, with times of its own.
            tcp_keepalive=False,
            receive_bytes=RECEIVE_BYTES,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE_SECONDS,
            read_bufsize=READ_BUFFER_BYTES,
            # Exchange discards the rest of a body itself, within a limit of size as well.
            lingering_time=0,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
        )
        self._handle, self._refuse = server.handle, server.refuse

    def handle(self, message: Message, body: StreamReader) -> Awaitable[bool]:
        """Respond to a request."""
        return self._handle(self, message, body)

    async def refuse(self, exc: BaseException) -> None:
        """Respond to a request whose head the parser could not read."""
        await self._refuse(self, _unread_fault(exc))


def _unread_fault(exc: BaseException | None) -> Fault:
    if isinstance(exc, HeadTooLarge):
        return Fault(
            FaultKind.HEAD_TOO_LARGE, f"The request head has more than {MAX_HEAD_BYTES} bytes: send a smaller one."
        )
    if isinstance(exc, LineTooLong):
        # aiohttp 3.14.5 quotes the target as a bytearray and a header as bytes; any other wording becomes 431.
        if "bytearray(b'/" in str(exc) or "bytearray(b'http" in str(exc):
            return Fault(
                FaultKind.TARGET_TOO_LONG,
                f"The request target has more than {MAX_LINE_BYTES} bytes: send a shorter one.",
            )
        return Fault(FaultKind.HEAD_TOO_LARGE, f"A header has more than {MAX_LINE_BYTES} bytes: send a shorter one.")
    if isinstance(exc, HttpProcessingError) and "too many" in str(exc).lower():
        return Fault(FaultKind.HEAD_TOO_LARGE, f"The request has more than {MAX_HEADERS} headers: send fewer.")
    if isinstance(exc, BadHttpMethod | BadStatusLine) and _UNKNOWN_METHOD.search(str(exc)):
        # RFC 9110 section 9.1.
        return Fault(FaultKind.UNKNOWN_METHOD, "The gateway does not know this method: use one of HTTP's.")
    return Fault(FaultKind.BAD_REQUEST, "The request is not well-formed HTTP/1.1 (RFC 9112): check the client.")


#: Idle connections closed at once for clients that wait to be accepted.
_ROOM: Final = 64


class TrafficServer(web.Server):
    """Makes a TrafficConnection for each client."""

    def __init__(self, handle: Handle, refuse: Refuse, turns: Turns, take: Take | None = None) -> None:
        self.handle, self.refuse = handle, refuse
        #: Of the bodies of all connections.
        self.turns = turns
        #: Takes whole requests before `handle` is called for them.
        self.take = take
        # handler_cancellation: a client that leaves while nothing is sent is noticed at once, not at the next event.
        super().__init__(no_request, handler_cancellation=True)
        self._watch = LeaveWatch()
        self.open_connections = 0
        #: Called after a connection was made or lost.
        self.on_connection_made: Callable[[asyncio.BaseProtocol], None] = _ignore
        self.on_connection_lost: Callable[[], None] = _ignore

    def __call__(self) -> TrafficConnection:
        """Make the protocol of a new connection."""
        loop = asyncio.get_running_loop()
        return TrafficConnection(self, loop=loop, watch=self._watch)

    async def shutdown(self, timeout: float | None = None) -> None:
        """Close every connection: those without a request at once, the others after it, or after `timeout` seconds."""
        self.pre_shutdown()
        await super().shutdown(timeout)
        self._watch.close()

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection."""
        super().connection_made(handler, transport)
        self.open_connections += 1
        self.on_connection_made(handler)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection, and report that it was lost."""
        super().connection_lost(handler, exc)
        self.open_connections -= 1
        self.on_connection_lost()

    def make_room(self) -> None:
        """Close some idle kept connections, the oldest first: their clients open another, and others wait for one."""
        closed_count = 0
        for connection in self.connections:
            if self.close_if_idle(connection, is_head_due=False):
                closed_count += 1
                if closed_count == _ROOM:
                    return

    @staticmethod
    def close_if_idle(connection: RequestHandler, *, is_head_due: bool) -> bool:
        """Close a kept connection on which nothing of a next request has arrived; return whether it was one.

        With `is_head_due`, also a connection that has yet to send its first request, or the rest of a request head.
        """
        if not isinstance(connection, ServerConnection) or not (connection.is_kept or is_head_due):
            return False
        # Last: a system call for each, of thousands that have sent no request.
        if not connection.is_waiting:
            return False
        connection.force_close()
        return True


def _ignore(*_: object) -> None:
    pass

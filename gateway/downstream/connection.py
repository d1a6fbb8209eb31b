"""aiohttp's server protocol, with its gaps closed (each verified against aiohttp 3.14.5; see check_aiohttp).

- A broken chunk in a request body wakes nobody: here it is put on the body (delete when aiohttp does so).
- A malformed head is answered with the parser's internals as text: here it is a problem document like any other.
- An unknown keyword makes aiohttp fall back to defaults with only a warning: here it is an error at start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp.http_parser
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from gateway.downstream.response import ClientResponse
from gateway.errors import Fault, FaultKind
from gateway.http.chunked import ChunkedDecoder
from gateway.transfer import is_plain

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
#: Answers a request whose head could not be read. Called with the fault; returns what to send.
RefuseUnread = Callable[[web.BaseRequest, Fault], ClientResponse]

#: Also the time a client has for its request head: nginx's client_header_timeout and keepalive_timeout are 60-75 s.
KEEPALIVE_SECONDS: Final = 60.0
#: What a connection may hold before its body is asked for: a receive, and twice this.
READ_BUFFER_BYTES: Final = 32 * 1024
#: What is received at once above the transports; many uploads that begin together hold one each.
RECEIVE_BYTES: Final = 64 * 1024
#: More than comes in before somebody asks for a body.
_MAX_READ_ALONG_BYTES: Final = 2**20
MAX_LINE_BYTES: Final = 8190
MAX_HEADERS: Final = 100


class TrafficConnection(RequestHandler):
    """One client's connection."""

    __slots__ = ("_bypassed", "_last_body", "_refuse_unread", "decoder", "was_broken")

    def __init__(self, server: TrafficServer, *, loop: asyncio.AbstractEventLoop, refuse_unread: RefuseUnread) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # aiohttp takes None as "no log", its types do not say so
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE_SECONDS,
            read_bufsize=READ_BUFFER_BYTES,
            # Exchange lingers itself, bounded in size as well.
            lingering_time=0,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
        )
        self._refuse_unread = refuse_unread
        #: Whether the connection ended with an error: bytes still on their way may not have arrived.
        self.was_broken = False
        #: The body of the last head parsed.
        self._last_body: StreamReader | None = None
        #: Reads along a chunked body, in case its rest is to be read below the parser.
        self.decoder: ChunkedDecoder | None = None
        #: The body whose rest goes past the parser.
        self._bypassed: StreamReader | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; read in smaller steps than asyncio's 256 KiB."""
        super().connection_made(transport)
        transport.max_size = RECEIVE_BYTES  # type: ignore[attr-defined]  # asyncio's, by no public name (3.11-3.13)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note how it ended: asyncio closes without an error only once every byte written has left."""
        self.was_broken = exc is not None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and tell the body being read if the parser gave up in the midst of it."""
        if self._bypassed is not None:
            self._read_past_parser(data, self._bypassed)
            return
        is_between = self._last_body is None or self._last_body.is_eof()
        super().data_received(data)
        if self._messages and self._messages[-1][1] is not self._last_body:
            self._last_body = self._messages[-1][1]
            self.decoder = None
            if is_between and len(self._messages) == 1:
                self._begin_reading_along(data)
        elif self.decoder is not None:
            self._read_along(data)
        if not self._messages or self._current_request is None:
            return
        error = getattr(self._messages[-1][0], "exc", None)
        payload = self._current_request.content
        if error is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(RequestPayloadError("broken chunk"))

    def bypass_parser(self) -> None:
        """Let what still comes through the transport go to the decoder and the body, not to the parser."""
        if self._current_request is not None:
            self._bypassed = self._current_request.content

    def _begin_reading_along(self, data: bytes) -> None:
        """Find where a chunked body begins, in data that begins with its head; without that nobody reads along."""
        message: Any = self._messages[0][0]
        if not getattr(message, "chunked", False) or not is_plain(self.transport):
            return
        line = f"{message.method} {message.path} HTTP/1.1\r\n".encode("utf-8", "surrogateescape")
        end = data.find(b"\r\n\r\n")
        if data.startswith(line) and end > 0:
            self.decoder = ChunkedDecoder()
            self._read_along(data[end + 4 :])

    def _read_along(self, data: bytes) -> None:
        decoder = self.decoder
        if decoder is None:
            return
        try:
            decoder.decode(data)
        except Fault:
            self.decoder = None
        if decoder.decoded_bytes > _MAX_READ_ALONG_BYTES:
            # Nobody took the body over: it goes through the parser to its end.
            self.decoder = None

    def _read_past_parser(self, data: bytes, body: StreamReader) -> None:
        decoder = self.decoder
        if decoder is None or body.is_eof():
            return
        try:
            if fresh := decoder.decode(data):
                body.feed_data(fresh)
        except Fault as fault:
            self.decoder = None
            body.set_exception(RequestPayloadError(str(fault)))
            return
        if decoder.is_ended:
            body.feed_eof()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Refuse what the parser could not read. The handler itself never lets an exception out."""
        del status, message
        response = self._refuse_unread(request, _unread_fault(exc))
        return response


def _unread_fault(exc: BaseException | None) -> Fault:
    if isinstance(exc, LineTooLong):
        # aiohttp 3.14.5 quotes the target as a bytearray and a field as bytes; another wording falls back to 431.
        if "bytearray(b'/" in str(exc) or "bytearray(b'http" in str(exc):
            return Fault(
                FaultKind.TARGET_TOO_LONG,
                f"The request target has more than {MAX_LINE_BYTES} bytes: send a shorter one.",
            )
        return Fault(
            FaultKind.HEAD_TOO_LARGE, f"A header field has more than {MAX_LINE_BYTES} bytes: send a shorter one."
        )
    if isinstance(exc, HttpProcessingError) and "too many" in str(exc).lower():
        return Fault(FaultKind.HEAD_TOO_LARGE, f"The request has more than {MAX_HEADERS} header fields: send fewer.")
    return Fault(FaultKind.BAD_REQUEST, "The request is not well-formed HTTP/1.1 (RFC 9112): check the client.")


class TrafficServer(web.Server):
    """Makes a TrafficConnection for each client."""

    def __init__(self, handle: Handle, refuse_unread: RefuseUnread) -> None:
        # handler_cancellation: a client that leaves an idle stream is noticed at once, not at the next event.
        super().__init__(handle, handler_cancellation=True)
        self._refuse_unread = refuse_unread

    def __call__(self) -> TrafficConnection:
        """Make the protocol of a new connection."""
        return TrafficConnection(self, loop=self._loop, refuse_unread=self._refuse_unread)


def check_aiohttp() -> None:
    """Raise RuntimeError if the installed aiohttp is not the one the gateway's care was verified against.

    The pure-Python parser is laxer than the C one in ways that let requests be smuggled.
    """
    parser: Any = aiohttp.http_parser.HttpRequestParser
    if parser.__module__ != "aiohttp._http_parser":
        raise RuntimeError(
            "aiohttp runs without its C parser: install a wheel for this platform and unset AIOHTTP_NO_EXTENSIONS"
        )

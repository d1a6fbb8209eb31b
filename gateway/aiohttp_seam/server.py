"""aiohttp's server protocol, with three gaps closed. Verified against aiohttp 3.14.5.

- After a broken chunk, aiohttp leaves a read of the request body waiting for ever. Here the error is set on the body.
  Delete that when aiohttp does so.
- A client that leaves while reading is paused is not noticed by aiohttp before it reads again. Here such a connection
  is watched. Delete that when asyncio's transports report a peer's end while they are paused.
- The rest of a chunked body can be received past the parser. For that, a decoder follows the body from its first byte.
  Delete that when the rest of a body is never read below its transport.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler, RequestPayloadError

from gateway.aiohttp_seam.transports import is_plain_tcp, set_receive_size
from gateway.errors import Fault
from gateway.http.chunked import ChunkedDecoder

#: The decoder follows a body up to this size; more comes in only where the parser reads the body to its end.
_MAX_DECODED_BYTES: Final = 2**20


class OnLeave(Protocol):
    """Called when a client has left."""

    def __call__(self, *, was_reset: bool) -> None:
        """React to a reset connection, or to the end of what the client sends."""
        ...


class Watch(Protocol):
    """Watches connections that are not being read."""

    def start(self, descriptor: int, on_leave: OnLeave) -> None:
        """Call `on_leave` once the peer has left. A call while it is watched changes nothing."""
        ...

    def stop(self, descriptor: int, on_leave: OnLeave) -> None:
        """Stop watching. A call while it is not watched changes nothing."""
        ...


class ServerConnection(RequestHandler):
    """One connection of a client. `options` are those of aiohttp's RequestHandler."""

    __slots__ = (
        "_bypassed",
        "_descriptor",
        "_is_cut",
        "_last_body",
        "_receive_bytes",
        "decoder",
        "was_broken",
        "watch",
    )

    def __init__(
        self, server: web.Server, *, loop: asyncio.AbstractEventLoop, receive_bytes: int, watch: Watch, **options: Any
    ) -> None:
        super().__init__(server, loop=loop, **options)
        self.watch = watch
        self._descriptor = -1
        #: Whether bytes that were written are dropped.
        self._is_cut = False
        self._receive_bytes = receive_bytes
        #: Whether the connection ended with an error: bytes that were written may not have arrived.
        self.was_broken = False
        #: The body of the last head parsed.
        self._last_body: StreamReader | None = None
        #: Follows a chunked body, in case its rest is read past the parser; None if it cannot be.
        self.decoder: ChunkedDecoder | None = None
        #: The body whose rest goes past the parser.
        self._bypassed: StreamReader | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is being handled."""
        return self._current_request is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start; receive at most `receive_bytes` per call."""
        super().connection_made(transport)
        set_receive_size(transport, self._receive_bytes)
        self._descriptor = transport.get_extra_info("socket").fileno()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Record how the connection ended: asyncio closes without an error only after every byte written was sent."""
        self.watch.stop(self._descriptor, self._leave)
        self.was_broken = exc is not None or self._is_cut
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; if it gave up within the body being read, set the error on that body."""
        if self._bypassed is not None:
            self._receive_past_parser(data, self._bypassed)
            return
        is_between = self._last_body is None or self._last_body.is_eof()
        super().data_received(data)
        messages = self._messages
        if messages and messages[-1][1] is not self._last_body:
            message, self._last_body = messages[-1]
            self.decoder = None
            # aiohttp's stand-in for an unreadable head has no `chunked`.
            if is_between and len(messages) == 1 and getattr(message, "chunked", False):
                self._follow_body(message, data)
        elif self.decoder is not None:
            self._feed_decoder(data)
        if not messages or self._current_request is None:
            return
        error = getattr(messages[-1][0], "exc", None)
        payload = self._current_request.content
        if error is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(RequestPayloadError("broken chunk"))

    def _pause_transport_reading(self) -> None:
        super()._pause_transport_reading()
        if self.transport is not None and not self.transport.is_closing():
            self.watch.start(self._descriptor, self._leave)

    def _resume_transport_reading(self) -> None:
        self.watch.stop(self._descriptor, self._leave)
        super()._resume_transport_reading()

    def _leave(self, *, was_reset: bool) -> None:
        """Close the connection of a client that left while reading was paused, as reading its end would have."""
        transport = self.transport
        if transport is None or transport.is_reading():
            return
        if was_reset or not is_plain_tcp(transport):
            # Over TLS, to close is to wait for what a paused transport does not read.
            self._is_cut = True
            transport.abort()
        else:
            transport.close()

    def bypass_parser(self) -> None:
        """From now on, pass what the transport receives to the decoder and the body, not to the parser."""
        if self._current_request is not None:
            self._bypassed = self._current_request.content

    def _follow_body(self, message: Any, data: bytes) -> None:
        """Start a decoder where the chunked body begins, if `data` holds its whole head and nothing before."""
        if not is_plain_tcp(self.transport):
            return
        line = f"{message.method} {message.path} HTTP/1.1\r\n".encode("utf-8", "surrogateescape")
        end = data.find(b"\r\n\r\n")
        if data.startswith(line) and end > 0:
            self.decoder = ChunkedDecoder()
            self._feed_decoder(data[end + 4 :])

    def _feed_decoder(self, data: bytes) -> None:
        decoder = self.decoder
        if decoder is None:
            return
        try:
            decoder.decode(data)
        except Fault:
            self.decoder = None
        if decoder.decoded_bytes > _MAX_DECODED_BYTES:
            self.decoder = None

    def _receive_past_parser(self, data: bytes, body: StreamReader) -> None:
        decoder = self.decoder
        if decoder is None or body.is_eof():
            return
        try:
            if decoded := decoder.decode(data):
                body.feed_data(decoded)
        except Fault as fault:
            self.decoder = None
            body.set_exception(RequestPayloadError(str(fault)))
            return
        if decoder.is_ended:
            body.feed_eof()

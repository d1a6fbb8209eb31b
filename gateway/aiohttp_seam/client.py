"""aiohttp's client protocol, with its gaps closed. Verified against aiohttp 3.14.5.

- `ClientConnection` reads a response that arrived before a reset, and sets a reset as the error of the body being read.
  Delete when aiohttp does so. It is fed message by message, see `gateway.aiohttp_seam.feed`.
- `ClientConnection` refuses response heads that the parser accepts in its lenient mode. Delete when that can be set.
- `ClientConnection` can be listened to, where no task waits for its response.
- `detach_parser` ends a response whose body was read below its transport.
"""

from __future__ import annotations

import asyncio
import select
from typing import Any, Final, Protocol

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

from gateway.aiohttp_seam.feed import UNTIL_CLOSE, BodyHead, MessageFeed, Turns
from gateway.aiohttp_seam.heads import ParsedResponse
from gateway.aiohttp_seam.tls import call_before_close, is_closed_by_peer, read_unread
from gateway.aiohttp_seam.transports import socket_of
from gateway.errors import Fault, FaultKind
from gateway.http.response_head import (
    MAX_RESPONSE_HEAD_BYTES,
    MAX_RESPONSE_HEADERS,
    MAX_RESPONSE_LINE_BYTES,
    check_response_head,
    explain_bad_head,
    is_interim,
)
from gateway.http.whole_response import WholeResponse, is_begun, read_whole_response

_RESPONSE_PARAMS: Final[dict[str, Any]] = {
    "read_until_eof": True,
    "auto_decompress": False,
    "max_line_size": MAX_RESPONSE_LINE_BYTES,
    "max_field_size": MAX_RESPONSE_LINE_BYTES,
    "max_headers": MAX_RESPONSE_HEADERS,
}
#: Go accepted five at first. An upstream may report progress with 102 for hours, and the gateway drops them.
MAX_INTERIM_RESPONSES: Final = 256


class Keeper(Protocol):
    """Keeps the connections to one endpoint."""

    def add(self, connection: ClientConnection, /) -> None:
        """Keep a connection for another request."""
        ...


class Listener(Protocol):
    """Awaits a response without a task."""

    def take_whole(self, response: WholeResponse, /) -> bool:
        """Take a response that came whole, and plain, the first to a request of `send_whole`.

        Return False, with nothing changed, to have it parsed like any other.
        """
        ...

    def look(self) -> None:
        """Look at what there is: something was received and parsed, or the connection failed or was lost."""
        ...


class ClientConnection(ResponseHandler):
    """One connection to an upstream: its protocol, and what its user gives back.

    `LiveConnector.take` and `KeptConnections.take` give it to one user at a time, until it calls either:

        release   keeps it for another request, or closes it if it cannot be used again
        drop      closes it

    Calls after the first are the next user's, or change nothing after `drop`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, turns: Turns) -> None:
        super().__init__(loop)
        #: Whether it was kept from a request before the one it was taken for, and since when.
        self.is_kept = False
        self.kept_since = 0.0
        #: What keeps it, and the connections that are open; set by `join`.
        self._keeper: Keeper | None = None
        self._open = set[ClientConnection]()
        #: Whether anything was received since it was kept last.
        self._is_touched = False
        #: None while a task reads.
        self.listener: Listener | None = None
        #: Whether nothing, or a part of a plain response, was received since `send_whole`: it is in `_head`, and
        #: `expect_response` is put off.
        self._awaits_whole = False
        self._poll: select.poll | None = None
        #: A reset that was met below the transport, where sending consumed the socket's error.
        self._reset: ConnectionResetError | None = None
        self._feed = MessageFeed(self, self, turns, is_lenient=True)
        #: The head that was parsed last, until `parse` has looked at it.
        self._parsed: Any = None
        self._interim_count = 0
        #: What was received while a response's head is awaited, None after the final head.
        self._head: bytes | None = None
        #: Where in it the next head begins, after those of interim responses.
        self._head_start = 0
        #: Whether the response that is expected may have the body that its head declares.
        self._may_have_body = True
        #: While aiohttp makes the parser of a response.
        self._is_starting = False

    @property
    def has_received(self) -> bool:
        """Whether anything was received since a response is expected."""
        return self._head is None or bool(self._head)

    @property
    def received_head(self) -> tuple[ParsedResponse, StreamReader] | None:
        """The response, or interim response, that was received and not taken; None before its head is here."""
        return self._buffer[0][0] if self._buffer else None

    def take_head(self) -> None:
        """Take `received_head`, as `read` does."""
        self._buffer.popleft()

    def join(self, keeper: Keeper, open_connections: set[ClientConnection]) -> None:
        """Be kept there, and be one of those that are open until it is dropped or lost."""
        self._keeper, self._open = keeper, open_connections
        open_connections.add(self)

    def release(self) -> None:
        """Keep it for another request; close it if it cannot be used again."""
        if self._is_touched:
            if self.should_close or self._feed.is_within_head or self._feed.has_unparsed or self._reading_paused:
                self.drop()
                return
            self._is_touched = False
        if self.transport is None or self._keeper is None:
            self.drop()
        else:
            self._keeper.add(self)

    def drop(self) -> None:
        """Close the connection; it is not kept."""
        self._open.discard(self)
        self.close()

    def is_untouched(self) -> bool:
        """Whether nothing arrived on a kept connection after its last response: no bytes, and no close.

        The transport may not have seen it yet.
        """
        transport = self.transport
        if transport is None or self._is_touched or self._should_close or transport.is_closing():
            return False
        if self._poll is None:
            sock = socket_of(transport)
            if sock is None:
                return False
            self._poll = select.poll()
            self._poll.register(sock.fileno(), select.POLLIN | select.POLLRDHUP)
        return not self._poll.poll(0)

    def expect_response(self, *, may_have_body: bool) -> None:
        """Expect the response to a request; one to HEAD has no body.

        A kept connection keeps its parser: it has seen the response before to its end, and nothing after it.
        """
        is_ready = self.is_kept and self._parser is not None and self._may_have_body
        self._expect(may_have_body=may_have_body)
        if not (is_ready and may_have_body):
            self._is_starting = True
            super().set_response_params(skip_payload=not may_have_body, **_RESPONSE_PARAMS)
            self._is_starting = False

    def _expect(self, *, may_have_body: bool) -> None:
        self._head = b""
        self._may_have_body = may_have_body
        self._head_start = 0
        self._interim_count = 0
        self._feed.start_message()

    def send_whole(self, request: bytes) -> None:
        """Send a whole request, other than HEAD, on a kept connection that is untouched; expect its response.

        A response that is plain and short is offered to the `listener` when it is whole, before anything is parsed.
        """
        self._awaits_whole, self._head = True, b""
        if self.transport is not None:
            self.transport.write(request)

    def stop_listening(self) -> None:
        """Leave what comes to a task, and what has come."""
        self.listener = None
        self._parse_begun()

    def _parse_begun(self) -> None:
        """Have the part of a response parsed that was kept until it is whole."""
        if self._awaits_whole and self._head:
            received, self._awaits_whole, self._is_touched = self._head, False, True
            self.expect_response(may_have_body=True)
            self._feed.receive(received)

    def data_received(self, data: bytes) -> None:
        """Parse what was received, in turns. aiohttp calls this with b"" where it continues after a pause."""
        if self._awaits_whole:
            if self._head:
                data = self._head + data
            if self.listener is not None:
                if (response := read_whole_response(data)) is not None:
                    self._awaits_whole, self._head = False, None
                    if self.listener.take_whole(response):
                        return
                elif is_begun(data):
                    self._head = data
                    return
            self._awaits_whole = False
            self.expect_response(may_have_body=True)
        if not data:
            if self._is_starting:
                # A new parser holds nothing that it could continue with.
                return
            if self._feed.decoder is None:
                self.parse(b"")
        self._is_touched = True
        self._feed.receive(data)
        self._notify()

    def parse(self, data: bytes) -> BodyHead | None:
        """Feed aiohttp's parser; return the body that follows if `data` ended a head that has one."""
        if (head := self._head) is not None:
            if self._head_start:
                head, self._head_start = head[self._head_start :], 0
            # What was received is most often the whole head, and a small body: then it is not copied.
            self._head = head + data[: MAX_RESPONSE_HEAD_BYTES + 1] if head else data
        super().data_received(data)
        if self._head is not None and len(self._head) - self._head_start > MAX_RESPONSE_HEAD_BYTES:
            self.set_exception(explain_bad_head(self._head, self._head_start))
        message, self._parsed, body = self._parsed, None, self._payload
        if message is None or body is None or body.is_eof() or is_interim(message.code):
            # Also 204 and 304, which have no body, whatever their headers say.
            return None
        if message.chunked:
            return BodyHead(body, None)
        length: str = message.headers.get("Content-Length", "")
        return BodyHead(body, int(length) if length.isdecimal() else UNTIL_CLOSE)

    def may_parse_head(self) -> bool:
        """Return whether the response is still readable."""
        return self._exception is None

    def may_have_body(self) -> bool:
        """Return whether the response may have the body that its head declares: it is not the response to HEAD."""
        return self._may_have_body

    def break_body(self, stream: StreamReader, fault: Fault) -> None:
        """Set the fault on a body that is malformed, and close the connection."""
        stream.set_exception(aiohttp.ClientPayloadError(str(fault)))
        self.force_close()
        if self.transport is not None:
            self.transport.close()

    def pause_reading(self) -> None:
        """Stop receiving: a body is not read as fast as it comes."""
        if self._feed.decoder is None:
            super().pause_reading()
            return
        # The parser is not parsing this body: paused, it would stop within the next one.
        self._reading_paused = True
        self._pause_transport_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Receive again, if a body has paused that: aiohttp's streams call this with every read and at their end."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Judge a head that the parser has read; it calls this within `data_received`."""
        if self._head is not None:
            if self._exception is not None:
                # The head before was refused.
                return
            try:
                self._head_start = check_response_head(self._head, self._head_start)
            except Fault as fault:
                self.set_exception(fault)
                return
            if not is_interim(data[0].code):
                self._head = None
            elif self._interim_count == MAX_INTERIM_RESPONSES:
                self.set_exception(_too_many_interim())
                return
            self._interim_count += 1
        self._parsed = data[0]
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Fail the read of a head, this one or the next. Where the parser refused a head, say what is wrong with it."""
        if self._head is not None and isinstance(exc, HttpProcessingError):
            exc = explain_bad_head(self._head, self._head_start)
        super().set_exception(exc, *cause)
        if self.listener is not None:
            # Not from here: this may be called in the middle of parsing.
            asyncio.get_running_loop().call_soon(self._notify)

    def record_reset(self, exc: ConnectionResetError) -> None:
        """Record a reset met while sending below the transport: the transport will read a clean end after it."""
        self._reset = exc

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Prepare for the end of a connection over TLS."""
        super().connection_made(transport)
        call_before_close(transport, self._receive_rest)

    def eof_received(self) -> None:
        """Take an end of TLS without its close_notify for a reset: anyone on the way may send a FIN.

        A body that only the close ends would look complete (RFC 9112 section 9.8). asyncio does not report it.
        """
        if socket_of(self.transport) is not None and not is_closed_by_peer(self.transport):
            self.record_reset(ConnectionResetError("TLS ended without close_notify"))
        super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Receive what had arrived before a reset, then set the reset on the body being read.

        A body that only the close ends would look complete.
        """
        exc = exc or self._reset
        self._receive_rest(exc)
        if exc is not None:
            body = self._payload
            if body is not None and not body.is_eof() and body.exception() is None:
                body.set_exception(aiohttp.ClientPayloadError("connection reset within the body"))
        super().connection_lost(exc)
        self._open.discard(self)
        self._feed.close()
        self._notify()

    def _receive_rest(self, exc: BaseException | None) -> None:
        """Parse what was received; if the connection failed, also what asyncio has not read.

        Its send may fail with the reset before the response was read that came before it. asyncio closes the socket
        only after this call; over TLS it calls `connection_lost` later.
        """
        self._parse_begun()
        self._feed.is_ending = True
        self._feed.continue_parsing()
        if exc is not None:
            for data in read_unread(self.transport):
                self.data_received(data)

    def _notify(self) -> None:
        if self.listener is not None:
            self.listener.look()


def _too_many_interim() -> Fault:
    return Fault(
        FaultKind.BAD_RESPONSE,
        f"The upstream sent more than {MAX_INTERIM_RESPONSES} interim responses (1xx) to one request: see its log.",
    )


def detach_parser(protocol: ResponseHandler, body: StreamReader) -> None:
    """End a response whose body was read to its end below the transport: its parser has not seen the rest.

    The connection can be kept: the next request makes a new parser.
    """
    protocol._parser = None
    body.feed_eof()
    protocol._payload = None

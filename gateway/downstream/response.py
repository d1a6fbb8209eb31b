"""The response to the client: a head in wire form, then the body, then exactly one end.

aiohttp's StreamResponse would add headers, fold duplicates, drop bytes that are not UTF-8 and remove the Content-Length
of a 304; so the head is written here. A response that is cut never looks complete: the last chunk or some bytes are
missing or, where only the close of the connection ends the body, the connection is reset (RFC 9112 sections 6.3 and 8).

    call            valid                  effect
    begin           once                   sends the head, or holds it for the first bytes of a short body
    write           after begin            sends a chunk
    end             after the last write   sends the end, and waits until all of it was sent; within limits of its own
                                           where no transfer is watched meanwhile
    send_whole      in place of all three  writes head and body in one step; `end` waits for what was not sent
    cut             any time               breaks the connection off
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from http import HTTPStatus
from typing import Final

from aiohttp.http import HttpVersion11
from aiohttp.http_writer import StreamWriter

from gateway.aiohttp_seam import Message, ServerConnection, count_unsent, drain_write_buffer, socket_of
from gateway.config import Route
from gateway.errors import Fault, FaultKind
from gateway.transfer import RawSocket, acknowledged_bytes, open_raw_socket

#: Linger on, zero seconds: close sends RST.
_RESET: Final = struct.pack("ii", 1, 0)
#: Bodies shorter than this are sent in one segment with their head.
_JOINED_BYTES: Final = 16 * 1024
#: Without a route: the default of `timeouts.idle`.
_IDLE_SECONDS: Final = 60.0
_NO_CONTENT: Final = 204
_EMPTY_STATUSES: Final = frozenset({_NO_CONTENT, 304})


class ClientResponse:
    """One response to the client. `length` is that of the body in bytes, None if it is not known."""

    # Of most responses these stay as they are, so they are not set for each.
    #: Whether the connection is kept after it.
    keep_alive = False
    _is_cut = False
    _is_done = False
    _is_close_delimited = False
    _has_body = True
    _connection: ServerConnection | None = None
    _transport: asyncio.Transport | None = None
    #: Encodes the chunks of a body whose length is not known.
    _chunked: StreamWriter | None = None
    _small_body = b""
    _held_head = b""

    def __init__(
        self,
        status: int,
        reason: bytes,
        lines: bytes,
        *,
        length: int | None,
        is_last: bool,
        is_ready: bool = False,
    ) -> None:
        self.status = status
        self._phrase = reason
        #: Headers in wire form, each with its CRLF.
        self._lines = lines
        self._length = length
        #: Whether `write` follows in the same iteration of the loop.
        self._is_ready = is_ready
        #: Whether the connection closes after it.
        self._is_last = is_last

    @classmethod
    def small(cls, status: int, lines: bytes, body: bytes, *, is_last: bool) -> ClientResponse:
        """Return a response with its whole body, sent by `begin`."""
        response = cls(status, _phrase(status), lines, length=len(body), is_last=is_last)
        response._small_body = body
        return response

    @property
    def has_begun(self) -> bool:
        """Whether a head was sent: from then on a fault can only cut."""
        return self._connection is not None

    def begin(self, connection: ServerConnection, message: Message) -> None:
        """Send the head of the response to a request. Raises Fault CLIENT_LEFT."""
        transport = connection.transport
        if transport is None or transport.is_closing():
            raise Fault(FaultKind.CLIENT_LEFT, "The client closed the connection before its response.")
        self._connection, self._transport = connection, transport
        head = self._encode_head(message)
        if self._length is None and self._has_body and not self._is_close_delimited:
            self._chunked = StreamWriter(connection, asyncio.get_running_loop())
            self._chunked.enable_chunking()
        if self._small_body and self._has_body:
            transport.write(head + self._small_body)
        elif self._length is not None and self._has_body and self._length < _JOINED_BYTES:
            # A short body is most often here already: head and body leave in one segment, in this iteration.
            self._held_head = head
            if not self._is_ready:
                asyncio.get_running_loop().call_soon(self._send_held_head)
        else:
            transport.write(head)

    def send_whole(self, connection: ServerConnection, message: Message, body: bytes) -> bool:
        """Write the head and the whole body in one step. Return whether the kernel has taken all of it.

        It has not where the connection failed, which then holds nothing either. `body` is not sent where the response
        has none (HEAD, 204). The connection must not be lost.
        """
        transport = connection.transport
        if transport is None:
            return False
        self._connection, self._transport, self._is_done = connection, transport, True
        head = self._encode_head(message)
        if not self._has_body:
            body = b""
        elif self._length is None and not self._is_close_delimited:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        transport.write(head + body)
        return not (count_unsent(transport) or transport.is_closing())

    def _encode_head(self, message: Message) -> bytes:
        """Return the head in wire form. Decides how the body ends (RFC 9112 section 6.3) and says so."""
        status, version = self.status, message.version
        self.keep_alive = not (message.should_close or self._is_last)
        self._has_body = message.method != "HEAD" and status not in _EMPTY_STATUSES
        framing = b""
        if self._length is not None:
            # > A server MUST NOT send a Content-Length header field in any response with a status code of 1xx
            # > (Informational) or 204 (No Content) (RFC 9110 section 8.6).
            if status != _NO_CONTENT:
                framing = b"Content-Length: %d\r\n" % self._length
        elif self._has_body and version >= HttpVersion11:
            framing = b"Transfer-Encoding: chunked\r\n"
        elif self._has_body:
            self._is_close_delimited = True
            self.keep_alive = False
        if not self.keep_alive:
            framing += b"Connection: close\r\n"
        elif version < HttpVersion11:
            framing += b"Connection: keep-alive\r\n"
        return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (status, self._phrase, self._lines, framing)

    def _send_held_head(self) -> None:
        head, self._held_head = self._held_head, b""
        if head and self._transport is not None and not self._transport.is_closing():
            self._transport.write(head)

    async def write(self, data: bytes, /) -> None:
        """Send a chunk of the body; returns when the client keeps up. Raises Fault CLIENT_LEFT if it is gone."""
        connection, transport = self._connection, self._transport
        if not self._has_body or connection is None or transport is None:
            return
        try:
            if self._chunked is not None:
                await self._chunked.write(data)
                return
            if transport.is_closing():
                raise _left()
            if self._held_head:
                data, self._held_head = self._held_head + data, b""
            transport.write(data)
            if connection.writing_paused:
                await connection.drain()
        except ConnectionError as exc:
            raise _left() from exc

    def acknowledged(self) -> int:
        """Return the progress of the client, see `gateway.transfer.progress`."""
        return acknowledged_bytes(socket_of(self._transport))

    async def flush(self, idle_seconds: float | None = None) -> None:
        """Wait until every byte has left this process, so that a client that stopped reading is still watched.

        Raises Fault CLIENT_LEFT; CLIENT_IDLE if the client takes nothing for `idle_seconds`.
        """
        if self._transport is None or self._connection is None:
            return
        while count_unsent(self._transport):
            acknowledged = self.acknowledged()
            try:
                async with asyncio.timeout(idle_seconds):
                    await drain_write_buffer(self._transport, self._connection.drain)
            except ConnectionError as exc:
                raise _left() from exc
            except TimeoutError:
                if idle_seconds is not None and self.acknowledged() == acknowledged:
                    raise _idle(idle_seconds) from None

    async def open_raw_socket(self) -> RawSocket | None:
        """Flush, and return an end to send the rest of the body on; None if it is framed or not plain TCP."""
        if self._connection is None or self._chunked is not None or not self._has_body:
            return None
        self._send_held_head()
        await self.flush()
        return open_raw_socket(self._transport)

    def translate_error(self, exc: OSError) -> Fault:
        """Return what a failure to send means: the client is gone."""
        del exc
        return _left()

    async def end(self, idle_seconds: float | None = None) -> None:
        """Send the end of the body and wait until it has left. Raises what `flush` raises."""
        connection, transport = self._connection, self._transport
        if self._is_cut or connection is None or transport is None:
            return
        if not self._is_done:
            self._send_held_head()
            try:
                if self._chunked is not None:
                    await self._chunked.write_eof()
            except ConnectionError as exc:
                raise _left() from exc
            if connection.transport is None:
                raise _left()
            self._is_done = True
        if count_unsent(transport):
            await self.flush(idle_seconds)

    def cut(self) -> None:
        """Break the connection off, so that what was sent cannot be taken for a complete response."""
        self._is_cut = True
        self.keep_alive = False
        # So that the client sees an incomplete response, as the log does, and not none at all.
        self._send_held_head()
        if self._transport is not None:
            abort(self._transport, with_reset=self._is_close_delimited)


def abort(transport: asyncio.Transport, *, with_reset: bool) -> None:
    """Close a connection at once, dropping what was not sent; `with_reset` so that even an end by close is broken."""
    if with_reset:
        sock = socket_of(transport)
        if sock is not None and not transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def _left() -> Fault:
    return Fault(FaultKind.CLIENT_LEFT, "The client closed the connection before its response was complete.")


def idle_seconds_of(route: Route | None) -> float | None:
    """Return for how long a client may take nothing of a response of which no transfer is watched; None for ever."""
    seconds = route.timeouts.idle if route is not None else _IDLE_SECONDS
    return seconds if seconds < math.inf else None


def _idle(seconds: float) -> Fault:
    return Fault(
        FaultKind.CLIENT_IDLE,
        f"The client took nothing of the response for {seconds:g} s: check the client and the line to it, or raise "
        "timeouts.idle of its route.",
    )


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""

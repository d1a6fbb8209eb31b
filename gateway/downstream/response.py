"""The response to the client: a head in wire form, then the body, then exactly one end.

aiohttp's StreamResponse would add headers, fold duplicates, drop bytes that are not UTF-8 and remove the Content-Length
of a 304; so the head is written here, and StreamResponse is only the type that aiohttp's server expects. A response
that is cut never looks complete: the last chunk or some bytes are missing or, where only the close of the connection
ends the body, the connection is reset (RFC 9112 sections 6.3 and 8).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_writer import StreamWriter

from gateway.aiohttp_seam import drain_write_buffer, socket_of
from gateway.errors import Fault, FaultKind
from gateway.http.headers import Header, Headers, encode_head
from gateway.transfer import RawSocket, acknowledged_bytes, open_raw_socket

#: Linger on, zero seconds: close sends RST.
_RESET: Final = struct.pack("ii", 1, 0)
#: Bodies shorter than this are sent in one segment with their head.
_JOINED_BYTES: Final = 16 * 1024
_EMPTY_STATUSES: Final = frozenset({204, 304})


class ClientResponse(web.StreamResponse):
    """One response to the client. `length` is that of the body in bytes, None if it is not known."""

    def __init__(
        self,
        status: int,
        reason: bytes,
        headers: Headers,
        *,
        length: int | None,
        is_last: bool,
        is_ready: bool = False,
    ) -> None:
        super().__init__(status=status, reason=None)
        self._phrase = reason
        self._message_headers = headers
        self._length = length
        #: Whether `write` follows in the same iteration of the loop.
        self._is_ready = is_ready
        #: Whether the connection closes after it.
        self._is_last = is_last
        self._keeps_connection = False
        self._is_cut = False
        self._is_done = False
        self._is_close_delimited = False
        self._has_body = True
        self._writer: StreamWriter | None = None
        self._transport: asyncio.Transport | None = None
        self._small_body = b""
        self._held_head = b""

    @classmethod
    def small(cls, status: int, headers: Headers, body: bytes, *, is_last: bool) -> ClientResponse:
        """Return a response with its whole body, sent by `prepare`."""
        response = cls(status, _phrase(status), headers, length=len(body), is_last=is_last)
        response._small_body = body
        return response

    @property
    def has_begun(self) -> bool:
        """Whether a head was sent: from then on a fault can only cut."""
        return self._writer is not None

    @property
    def keep_alive(self) -> bool:
        """Whether the connection is kept after the response: aiohttp's loop asks at the end."""
        return self._keeps_connection

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the head. Called again by aiohttp's loop at the end, when it does nothing."""
        if self._writer is not None or self._is_cut:
            return self._writer
        writer = request.writer
        transport = request.transport
        if not isinstance(writer, StreamWriter) or transport is None or transport.is_closing():
            raise ConnectionResetError("the client left before its response")
        self._writer, self._transport = writer, transport
        self._keeps_connection = request.keep_alive and not self._is_last
        headers = [*self._message_headers, *self._frame(request, writer)]
        head = encode_head(f"HTTP/1.1 {self.status} ".encode() + self._phrase, headers)
        # aiohttp looks at this to decide whether it may still send an error of its own.
        writer.output_size += len(head)
        if self._small_body and self._has_body:
            transport.write(head + self._small_body)
        elif self._length is not None and self._has_body and self._length < _JOINED_BYTES:
            # A short body is most often here already: head and body leave in one segment, in this iteration.
            self._held_head = head
            if not self._is_ready:
                asyncio.get_running_loop().call_soon(self._send_held_head)
        else:
            transport.write(head)
        return writer

    def send_whole(self, request: web.BaseRequest, body: bytes) -> bool:
        """Write the head and the whole body in one step, in place of `prepare`, `write` and `end`.

        Returns whether the kernel took all of it. The rest is waited for with `flush`.
        """
        writer, transport = request.writer, request.transport
        if not isinstance(writer, StreamWriter) or transport is None:
            return False
        self._writer, self._transport, self._is_done = writer, transport, True
        self._keeps_connection = request.keep_alive and not self._is_last
        headers = [*self._message_headers, *self._frame(request, writer)]
        head = encode_head(f"HTTP/1.1 {self.status} ".encode() + self._phrase, headers)
        if self._length is None and self._has_body:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        transport.write(head + body)
        return not transport.get_write_buffer_size()

    def _send_held_head(self) -> None:
        head, self._held_head = self._held_head, b""
        if head and self._transport is not None and not self._transport.is_closing():
            self._transport.write(head)

    def _frame(self, request: web.BaseRequest, writer: StreamWriter) -> list[Header]:
        """Decide how the body ends (RFC 9112 section 6.3) and return the headers that say so."""
        headers: list[Header] = []
        self._has_body = request.method != "HEAD" and self.status not in _EMPTY_STATUSES
        if self._length is not None:
            # > A server MUST NOT send a Content-Length header field in any response with a status code of 1xx
            # > (Informational) or 204 (No Content) (RFC 9110 section 8.6).
            if self.status != HTTPStatus.NO_CONTENT:
                headers.append((b"Content-Length", b"%d" % self._length))
        elif self._has_body and request.version >= (1, 1):
            writer.enable_chunking()
            headers.append((b"Transfer-Encoding", b"chunked"))
        elif self._has_body:
            self._is_close_delimited = True
            self._keeps_connection = False
        if not self._keeps_connection:
            headers.append((b"Connection", b"close"))
        elif request.version < (1, 1):
            headers.append((b"Connection", b"keep-alive"))
        return headers

    async def write(self, data: bytes | bytearray | memoryview, /) -> None:
        """Send a chunk of the body; returns when the client keeps up. Raises Fault CLIENT_LEFT if it is gone."""
        if self._has_body and self._writer is not None:
            if self._held_head:
                data, self._held_head = self._held_head + data, b""
            try:
                await self._writer.write(data)
            except ConnectionError as exc:
                raise _left() from exc

    def acknowledged(self) -> int:
        """Return the progress of the client, see `gateway.transfer.progress`."""
        return acknowledged_bytes(socket_of(self._transport))

    async def flush(self) -> None:
        """Wait until every byte has left this process, so that a client that stopped reading is still watched."""
        if self._transport is None or self._writer is None:
            return
        try:
            await drain_write_buffer(self._transport, self._writer.drain)
        except ConnectionError as exc:
            raise _left() from exc

    async def open_raw_socket(self) -> RawSocket | None:
        """Flush, and return an end to send the rest of the body on; None if it is framed or not plain TCP."""
        if self._writer is None or self._writer.chunked or not self._has_body:
            return None
        self._send_held_head()
        await self.flush()
        transport = self._transport
        return open_raw_socket(transport)

    def translate_error(self, exc: OSError) -> Fault:
        """Return what a failure to send means: the client is gone."""
        del exc
        return _left()

    async def end(self) -> None:
        """Send the end of the body and wait until it has left. Raises Fault CLIENT_LEFT."""
        if self._is_done and not self._is_cut:
            await self.flush()
        if self._is_done or self._is_cut or self._writer is None:
            return
        self._send_held_head()
        if self._has_body:
            try:
                await self._writer.write_eof()
            except ConnectionError as exc:
                raise _left() from exc
        self._is_done = True
        if self._transport is not None and self._transport.get_write_buffer_size():
            await self.flush()

    async def write_eof(self, data: bytes = b"") -> None:
        """End the response: aiohttp's server calls this last. Nothing is sent after a cut."""
        del data
        try:
            await self.end()
        except Fault as fault:
            raise ConnectionResetError("the client left") from fault

    def cut(self) -> None:
        """Break the connection off, so that what was sent cannot be taken for a complete response."""
        self._is_cut = True
        self._keeps_connection = False
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


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""

"""The body of a request, as the source of an upload."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestPayloadError

from gateway.aiohttp_seam import (
    DISCARD_STEP_BYTES,
    PausableStream,
    ServerConnection,
    is_plain_tcp,
    peek_buffered,
    set_receive_size,
)
from gateway.errors import Fault, FaultKind
from gateway.transfer import ChunkedRawBody, RawBody, SizedRawBody, open_raw_socket

#: Received per call of a body that is read through aiohttp's streams.
_STEP_BYTES: Final = 256 * 1024


class WholeBody:
    """The body of a request that came whole: nothing of it is to be received. The same as a RequestBody otherwise."""

    __slots__ = ("_data", "_unread")

    is_received = True
    is_raw = False
    has_begun = True

    def __init__(self, data: bytes) -> None:
        self._data = data
        #: Read before and given back, then the body.
        self._unread = [data]

    def peek(self) -> bytes:
        """Return the body, which was not read; it stays unread."""
        return self._data

    def unread(self, chunks: Iterable[bytes]) -> None:
        """Give back what was read, to be read again first."""
        self._unread[:0] = chunks

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end."""
        return self._unread.pop(0) if self._unread else b""

    def pause(self) -> bool:
        """Return False: there is nothing to be read below the transport."""
        return False

    def fetch_buffered(self) -> bool:
        """Return whether a read returns something."""
        return bool(self._unread)

    def open_raw_body(self, length: int | None) -> RawBody | None:
        """Return None: there is nothing to be read below the transport."""
        del length
        return None

    def resume(self, *, is_whole: bool) -> None:
        """Nothing was paused."""

    def receive_less_at_once(self) -> None:
        """Nothing is received."""


class RequestBody:
    """The body of one request, one chunk per read.

    Raises Fault CLIENT_LEFT if the connection drops and BAD_FRAMING if a chunk is broken (RFC 9112 sections 7.1
    and 8).
    """

    __slots__ = (
        "_content",
        "_is_asked_for",
        "_paused",
        "_protocol",
        "_raw_body",
        "_unread",
    )

    def __init__(self, connection: ServerConnection, content: StreamReader) -> None:
        self._content = content
        self._protocol = connection
        self._is_asked_for = False
        #: Read before, and given back.
        self._unread: deque[bytes] = deque()
        #: Set while the transport receives nothing.
        self._paused: PausableStream | None = None
        self._raw_body: RawBody | None = None

    @property
    def is_received(self) -> bool:
        """Whether the last byte was received, read or not."""
        return self._content.is_eof() if self._raw_body is None else self._raw_body.is_ended

    @property
    def is_raw(self) -> bool:
        """Whether bytes of it were not seen by aiohttp's parser, which then cannot find the next request.

        The end of a chunked body is found by its decoder.
        """
        return isinstance(self._raw_body, SizedRawBody)

    @property
    def has_begun(self) -> bool:
        """Whether any byte of it was received."""
        return self._content.total_bytes > 0

    def peek(self) -> bytes:
        """Return the body, which was received whole and not read; it stays unread."""
        return peek_buffered(self._content)

    def unread(self, chunks: Iterable[bytes]) -> None:
        """Give back what was read, to be read again first."""
        self._unread.extend(chunks)

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end."""
        if self._unread:
            return self._unread.popleft()
        if self._raw_body is not None and self._raw_body.is_ended:
            return b""
        if not self._is_asked_for:
            self._receive_more_at_once()
        try:
            chunk = await self._content.readany()
        except (RequestPayloadError, HttpProcessingError) as exc:
            raise Fault(FaultKind.BAD_FRAMING, "The chunked body is malformed (RFC 9112 section 7.1).") from exc
        except OSError as exc:
            raise _left() from exc
        if self._raw_body is not None:
            # Reading was resumed before the raw body ended: count what comes through the stream, to find its end.
            self._raw_body.skip(len(chunk))
        return chunk

    def _receive_more_at_once(self) -> None:
        """Receive more per call from the first read on; before it, many connections must hold little each."""
        self._receive_at_once(_STEP_BYTES)
        self._content.set_read_chunk_size(_STEP_BYTES // 2)

    def receive_less_at_once(self) -> None:
        """Receive little per call: for what is dropped, which takes no turns while it is received."""
        self._receive_at_once(DISCARD_STEP_BYTES)

    def _receive_at_once(self, size_bytes: int) -> None:
        self._is_asked_for = True
        transport = self._protocol.transport
        if transport is not None and is_plain_tcp(transport):
            set_receive_size(transport, size_bytes)

    def pause(self) -> bool:
        """Stop receiving through the transport; return False if that cannot be done. Lifecycle: see PausableStream."""
        stream = PausableStream(self._protocol, self._content)
        self._paused = stream if stream.pause() else None
        return self._paused is not None

    def fetch_buffered(self) -> bool:
        """Let the parser hand out what came in before the pause; return whether a read returns without waiting."""
        return bool(self._unread) or (self._paused is not None and self._paused.fetch_buffered())

    def open_raw_body(self, length: int | None) -> RawBody | None:
        """Return the rest of the body, `length` bytes (None: chunked), to be read below the transport.

        None if nothing is left, or without a free descriptor.
        """
        transport = self._paused.take_transport() if self._paused is not None else None
        if transport is None:
            raise _left()
        if length is not None:
            socket = open_raw_socket(transport) if length else None
            self._raw_body = SizedRawBody(socket, length, _left) if socket is not None else None
            return self._raw_body
        if (socket := open_raw_socket(transport)) is None:
            return None
        decoder = self._protocol.take_decoder()
        if decoder is None:
            socket.close()
            return None
        self._raw_body = ChunkedRawBody(socket, decoder, _left)
        return self._raw_body

    def resume(self, *, is_whole: bool) -> None:
        """Receive through the transport again. The connection closes after the response: the parser missed the rest."""
        del is_whole
        if self._raw_body is not None:
            self._raw_body.socket.close()
        if self._paused is not None:
            self._paused.resume()
            self._paused = None
        if isinstance(self._raw_body, ChunkedRawBody):
            self._protocol.give_back_decoder()


#: The body of a request.
ReceivedBody = RequestBody | WholeBody


def _left() -> Fault:
    return Fault(FaultKind.CLIENT_LEFT, "The client closed the connection within its body.")

"""What the client sends: the source of uploads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestPayloadError

from gateway.downstream.connection import TrafficConnection
from gateway.errors import Fault, FaultKind
from gateway.http.chunked import ChunkedDecoder
from gateway.transfer import ChunkedRawBody, RawBody, RawSocket, SizedRawBody, is_plain

#: What is received at once of a body that is pulled through aiohttp's streams.
_STEP_BYTES: Final = 256 * 1024


class RequestBody:
    """Yields the client's body, one chunk per read of its socket.

    Raises Fault CLIENT_LEFT if the connection drops and BAD_FRAMING if a chunk is broken (RFC 9112 sections 7.1
    and 8).
    """

    def __init__(self, request: web.BaseRequest) -> None:
        self._content: StreamReader = request.content
        self._protocol = request.protocol
        self._is_asked_for = False
        #: Read before, and given back.
        self._unread: deque[bytes] = deque()
        self._is_chunked = request._message.chunked
        self._raw_body: RawBody | None = None

    @property
    def is_received(self) -> bool:
        """Whether the last byte has come in, read or not."""
        return self._content.is_eof() if self._raw_body is None else self._raw_body.is_ended

    @property
    def is_raw(self) -> bool:
        """Whether bytes of it passed aiohttp's parser by, which knows no more where the next request begins."""
        return self._raw_body is not None

    @property
    def has_begun(self) -> bool:
        """Whether any byte of it has come in."""
        return self._content.total_bytes > 0

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
            # What is left of a body that was given back unfinished: only its end is still of interest.
            self._raw_body.skip(len(chunk))
        return chunk

    def _receive_more_at_once(self) -> None:
        """Read in larger steps: until somebody asks, many connections must hold little; from then on steps cost."""
        self._is_asked_for = True
        transport = self._protocol.transport if self._protocol is not None else None
        if is_plain(transport):
            transport.max_size = _STEP_BYTES  # type: ignore[union-attr]  # asyncio's, by no public name (3.11-3.13)
        # StreamReader takes its limits only when it is made (aiohttp 3.14.5).
        self._content._low_water = max(self._content._low_water, _STEP_BYTES // 2)
        self._content._high_water = max(self._content._high_water, _STEP_BYTES)

    def pause(self) -> bool:
        """Let nothing more come in through the transport; say whether that can be done."""
        if self._protocol is None or self._content.is_eof() or not is_plain(self._protocol.transport):
            return False
        if self._is_chunked and self._decoder is None:
            return False
        # aiohttp's flow control would resume reading with the next read; this hold of its own stays (3.14.5).
        self._protocol._pause_reading_for_buffer()
        return True

    @property
    def has_buffered(self) -> bool:
        """Whether a read would return at once what came in before the pause."""
        if self._unread:
            return True
        if not self._content._buffer and self._protocol is not None and self._protocol._reading_paused:
            # The parser holds a tail that it only gives out when resumed.
            self._protocol.resume_reading()
        return bool(self._content._buffer) or self._content.exception() is not None

    def detach(self, length: int | None) -> RawBody | None:
        """Take the rest of the body, `length` bytes (None: chunked), below the transport.

        None if nothing is left, or the decoder that read along does not agree with the parser where it stopped.
        """
        protocol = self._protocol
        if protocol is None or protocol.transport is None:
            raise _left()
        if length is not None:
            self._raw_body = SizedRawBody(RawSocket(protocol.transport), length, _left) if length else None
            return self._raw_body
        decoder = self._decoder
        if decoder is None or decoder.is_ended or decoder.decoded_bytes != self._content.total_bytes:
            return None
        self._raw_body = ChunkedRawBody(RawSocket(protocol.transport), decoder, _left)
        if isinstance(protocol, TrafficConnection):
            protocol.bypass_parser()
        return self._raw_body

    @property
    def _decoder(self) -> ChunkedDecoder | None:
        return self._protocol.decoder if isinstance(self._protocol, TrafficConnection) else None

    def resume(self, *, is_whole: bool) -> None:
        """Give the connection back: it is only watched for the client's leaving then, and closes behind the answer."""
        del is_whole
        if self._raw_body is not None:
            self._raw_body.socket.close()
        if self._protocol is not None and self._protocol._buffer_paused:
            self._protocol._resume_reading_for_buffer()


def _left() -> Fault:
    return Fault(FaultKind.CLIENT_LEFT, "The client closed the connection within its body.")

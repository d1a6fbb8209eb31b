"""The response of an upstream: its head, and its body as a source that owns the connection it arrives on."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

from gateway.aiohttp_seam import (
    ClientConnection,
    ParsedResponse,
    PausableStream,
    detach_parser,
    has_buffered,
    peek_buffered,
    take_buffered,
)
from gateway.errors import Fault, FaultKind
from gateway.http.headers import ReceivedHeaders
from gateway.http.whole_response import WholeResponse
from gateway.transfer import SizedRawBody, open_raw_socket
from gateway.upstream.request import UpstreamRequest

_BODILESS: Final = frozenset({204, 304})
#: What aiohttp's flow control never pauses.
_SMALL_BYTES: Final = 64 * 1024


class UpstreamResponse:
    """A response whose head is here. `async with response`: leaving the block closes the response.

    The connection is kept if both bodies ended whole, and aborted otherwise; nothing reads the request's body
    afterwards. As a source it is pausable, see `PausableStream` for the order of those calls.
    """

    __slots__ = (
        "_connection",
        "_content",
        "_paused",
        "_raw_body",
        "_request",
        "body_length",
        "fault",
        "headers",
        "length",
        "on_closed",
        "reason",
        "status",
        "version",
    )

    def __init__(
        self,
        message: ParsedResponse,
        content: StreamReader,
        connection: ClientConnection,
        request: UpstreamRequest,
        method: str,
    ) -> None:
        self._content = content
        self._connection = connection
        self._request = request
        #: Set while the transport receives nothing.
        self._paused: PausableStream | None = None
        self._raw_body: SizedRawBody | None = None
        self.version: tuple[int, int] = message.version
        self.status = message.code
        self.reason = (message.reason or "").encode("utf-8", "surrogateescape")
        self.headers = ReceivedHeaders(message.raw_headers)
        declared = self.headers.first(b"content-length")
        #: Content-Length as declared, also where no body follows (HEAD, 304); None without one.
        self.length = int(declared) if declared is not None else None
        is_bodiless = method == "HEAD" or self.status in _BODILESS
        #: Bytes to be read; None until the body's end.
        self.body_length = 0 if is_bodiless else self.length
        #: Called once with the response, after the connection was given back.
        self.on_closed: Callable[[UpstreamResponse], None] | None = None
        #: What ended the block that owns the response.
        self.fault: Fault | None = None

    async def __aenter__(self) -> Self:
        """Enter the block that owns the response."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the response."""
        if isinstance(exc, Fault):
            self.fault = exc
        await self.close()

    async def close(self) -> None:
        """Give the connection back and stop sending the request's body. Calls after the first change nothing."""
        self.release()
        await self._request.stop()

    def release(self) -> None:
        """Give the connection back: all of `close` for a request that was sent whole."""
        self._request.close(is_whole=self._content.is_eof())
        if self.on_closed is not None:
            self.on_closed(self)
            self.on_closed = None

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end. Raises Fault, that of the request's body first.

        What came before the connection was lost is returned first.
        """
        try:
            return await self._content.readany()
        except (aiohttp.ClientError, OSError, HttpProcessingError) as exc:
            if received := take_buffered(self._content):
                return received
            raise self._lost() from exc

    def to_whole(self) -> WholeResponse:
        """Return it with its body, which was received whole and not read. In place of closing it."""
        body = peek_buffered(self._content)
        return WholeResponse(self.status, self.reason, self.headers, body, self.length, self.body_length)

    def take_small(self) -> bytes | None:
        """Return the body if it was received whole and is small; None otherwise. To be called before any read."""
        content = self._content
        if not content.is_eof() or content.total_bytes > _SMALL_BYTES or content.exception() is not None:
            return None
        return peek_buffered(content)

    @property
    def is_whole(self) -> bool:
        """Whether it was received to its end."""
        return self._content.is_eof()

    @property
    def is_ready(self) -> bool:
        """Whether some of the body is here: then the next read does not wait."""
        # Without a body, aiohttp's stream is a placeholder that has no buffer.
        return self.body_length != 0 and has_buffered(self._content)

    def pause(self) -> bool:
        """Stop receiving through the transport; return False if that cannot be done."""
        if self.body_length is None:
            return False
        stream = PausableStream(self._connection, self._content)
        self._paused = stream if stream.pause() else None
        return self._paused is not None

    def fetch_buffered(self) -> bool:
        """Have the parser hand out what came before the pause; return whether a read does not wait."""
        return self._paused is not None and self._paused.fetch_buffered()

    def open_raw_body(self, length: int | None) -> SizedRawBody | None:
        """Return the rest of the body, `length` bytes, to be read below the transport; None if none is left."""
        if not length:
            return None
        transport = self._paused.take_transport() if self._paused is not None else None
        if transport is None:
            raise self._lost()
        socket = open_raw_socket(transport)
        self._raw_body = SizedRawBody(socket, length, self._lost) if socket is not None else None
        return self._raw_body

    def resume(self, *, is_whole: bool) -> None:
        """Receive through the transport again; `is_whole` if the rest was read to its end below it.

        Only then can the connection be kept.
        """
        if self._raw_body is not None:
            self._raw_body.socket.close()
        if is_whole:
            detach_parser(self._connection, self._content)
        if self._paused is not None:
            self._paused.resume()
            self._paused = None

    def _lost(self) -> Fault:
        return self._request.fault or Fault(
            FaultKind.RESPONSE_INCOMPLETE, "The upstream's connection was lost within its response: see its log."
        )

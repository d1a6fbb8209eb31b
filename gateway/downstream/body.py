"""What the client sends: the source of uploads."""

from __future__ import annotations

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestPayloadError

from gateway.errors import Fault, FaultKind


class RequestBody:
    """Yields the client's body, one chunk per read of its socket.

    Raises Fault CLIENT_LEFT if the connection drops and BAD_FRAMING if a chunk is broken (RFC 9112 sections 7.1
    and 8); aiohttp's client would report either as the upstream's failure, so it is remembered in `fault`.
    """

    def __init__(self, request: web.BaseRequest, length: int | None) -> None:
        self._content: StreamReader = request.content
        #: Declared length in bytes, None for a chunked body.
        self.length = length
        self.fault: Fault | None = None

    @property
    def is_received(self) -> bool:
        """Whether the last byte has come in, read or not."""
        return self._content.is_eof()

    @property
    def has_begun(self) -> bool:
        """Whether any byte of it has come in."""
        return self._content.total_bytes > 0

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end."""
        try:
            return await self._content.readany()
        except (RequestPayloadError, HttpProcessingError) as exc:
            self.fault = Fault(FaultKind.BAD_FRAMING, "The chunked body is malformed (RFC 9112 section 7.1).")
            raise self.fault from exc
        except OSError as exc:
            self.fault = Fault(FaultKind.CLIENT_LEFT, "The client closed the connection within its body.")
            raise self.fault from exc

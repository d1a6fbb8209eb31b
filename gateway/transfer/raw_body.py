"""The rest of a body, read straight from its socket after the parser has seen the beginning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gateway.errors import Fault
from gateway.http.chunked import ChunkedDecoder
from gateway.transfer.raw_socket import MIN_CHUNK_BYTES, RawSocket


class RawBody(Protocol):
    """The rest of a body."""

    end: RawSocket
    #: How much to receive at once.
    chunk_bytes: int

    @property
    def is_ended(self) -> bool:
        """Whether every byte was taken."""
        ...

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end. Raises the source's Fault if the peer leaves before."""
        ...

    def skip(self, size: int) -> None:
        """Count bytes that went another way: the body was given back unfinished."""
        ...


class SizedRawBody:
    """So many bytes as they are."""

    def __init__(self, end: RawSocket, left: int, lost: Callable[[], Fault]) -> None:
        self.end = end
        self.left = left
        self.lost = lost
        self.chunk_bytes = MIN_CHUNK_BYTES

    @property
    def is_ended(self) -> bool:
        """Whether every byte was taken."""
        return not self.left

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end. Raises the source's Fault if the peer leaves before."""
        left = self.left
        if not left:
            return b""
        try:
            chunk = await self.end.receive(min(left, self.chunk_bytes))
        except OSError as exc:
            raise self.lost() from exc
        if not chunk:
            raise self.lost()
        self.left = left - len(chunk)
        return chunk

    def skip(self, size: int) -> None:
        """Count bytes that went another way."""
        self.left -= min(size, self.left)


class ChunkedRawBody:
    """A chunked body from where the parser stopped; the decoder has read along up to there."""

    def __init__(self, end: RawSocket, decoder: ChunkedDecoder, lost: Callable[[], Fault]) -> None:
        self.end = end
        self.chunk_bytes = MIN_CHUNK_BYTES
        self._decoder = decoder
        self._lost = lost

    @property
    def is_ended(self) -> bool:
        """Whether every byte was taken."""
        return self._decoder.is_ended

    async def read(self) -> bytes:
        """Return the data of what has come, b"" at the end. Raises Fault, also BAD_FRAMING."""
        decoder = self._decoder
        while not decoder.is_ended:
            try:
                received = await self.end.receive(self.chunk_bytes)
            except OSError as exc:
                raise self._lost() from exc
            if not received:
                raise self._lost()
            if data := decoder.decode(received):
                return data
        return b""

    def skip(self, size: int) -> None:
        """Nothing to count: the decoder goes on where the bytes go."""

"""The rest of a request or response body, read from its socket after aiohttp's parser has seen the beginning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gateway.errors import Fault
from gateway.http.chunked import ChunkedDecoder
from gateway.transfer.exhaustion import exhaustion_fault
from gateway.transfer.raw_socket import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, RawSocket


class RawBody(Protocol):
    """The rest of a body."""

    socket: RawSocket
    #: How many bytes to receive at once, and how many at most.
    chunk_bytes: int
    most_bytes: int
    #: How many bytes came with the last receive, 0 before the first.
    received_bytes: int

    @property
    def is_ended(self) -> bool:
        """Whether every byte was read."""
        ...

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end. Raises the source's Fault if the peer closes before the end."""
        ...

    def skip(self, size: int) -> None:
        """Count `size` bytes that were not read here."""
        ...


class SizedRawBody:
    """A body of known length: `remaining_bytes` as they are on the wire. `lost` makes the Fault of a peer that left."""

    def __init__(self, socket: RawSocket, remaining_bytes: int, lost: Callable[[], Fault]) -> None:
        self.socket = socket
        self.remaining_bytes = remaining_bytes
        self.lost = lost
        self.chunk_bytes, self.most_bytes = MIN_CHUNK_BYTES, MAX_CHUNK_BYTES
        self.received_bytes = 0

    @property
    def is_ended(self) -> bool:
        """Whether every byte was read."""
        return not self.remaining_bytes

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end. Raises the source's Fault if the peer closes before the end."""
        remaining = self.remaining_bytes
        if not remaining:
            return b""
        try:
            chunk = await self.socket.receive(min(remaining, self.chunk_bytes))
        except OSError as exc:
            raise exhaustion_fault(exc) or self.lost() from exc
        if not chunk:
            raise self.lost()
        self.received_bytes = size = len(chunk)
        self.remaining_bytes = remaining - size
        return chunk

    def skip(self, size: int) -> None:
        """Count `size` bytes that were not read here."""
        self.remaining_bytes -= min(size, self.remaining_bytes)


class ChunkedRawBody:
    """A chunked body from where its decoder stopped."""

    def __init__(self, socket: RawSocket, decoder: ChunkedDecoder, lost: Callable[[], Fault]) -> None:
        self.socket = socket
        self.chunk_bytes, self.most_bytes = MIN_CHUNK_BYTES, MAX_CHUNK_BYTES
        self.received_bytes = 0
        self._decoder = decoder
        self._lost = lost

    @property
    def is_ended(self) -> bool:
        """Whether every byte was read."""
        return self._decoder.is_ended

    async def read(self) -> bytes:
        """Return the data of what was received, b"" at the end. Raises Fault, also BAD_FRAMING."""
        decoder = self._decoder
        while not decoder.is_ended:
            if decoder.has_more:
                data = decoder.decode(b"")
            else:
                try:
                    data = await self._receive()
                except OSError as exc:
                    raise exhaustion_fault(exc) or self._lost() from exc
            if data:
                return data
        return b""

    async def _receive(self) -> bytes:
        """Receive once, and return the data of it."""
        decoder = self._decoder
        while (foreseen := decoder.foresee(self.chunk_bytes)) is not None:
            count = self.socket.try_receive_into(foreseen.buffers)
            if count is not None:
                if not count:
                    raise self._lost()
                self.received_bytes = count
                return decoder.take(foreseen, count)
            # No memory is held for a peer that is slow.
            foreseen = None
            await self.socket.wait_readable()
        # No more than this: what the decoder joins is held twice.
        received = await self.socket.receive(min(self.chunk_bytes, MAX_CHUNK_BYTES))
        if not received:
            raise self._lost()
        self.received_bytes = len(received)
        return decoder.decode(received)

    def skip(self, size: int) -> None:
        """Count nothing: the decoder counts what it decodes, wherever that was read."""

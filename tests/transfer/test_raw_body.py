"""Bodies that are read from their sockets: how much of what is received they hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.errors import Fault, FaultKind
from gateway.http.chunked import ChunkedDecoder
from gateway.transfer import ChunkedRawBody, RawBody, RawSocket, SizedRawBody, open_raw_socket
from gateway.transfer.lanes import ChunkMemory
from gateway.transfer.raw_socket import MIN_CHUNK_BYTES

PIECE = bytes(16 * 1024)


@pytest.fixture
async def ends() -> AsyncIterator[tuple[RawSocket, asyncio.StreamWriter]]:
    """A connection: the end that is received from as a raw socket, and what sends."""
    accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), "127.0.0.1", 0)
    _, theirs = await asyncio.open_connection(*server.sockets[0].getsockname())
    ours = await accepted
    transport = ours.transport
    assert isinstance(transport, asyncio.ReadTransport)
    transport.pause_reading()
    socket = open_raw_socket(transport)
    assert socket is not None
    yield socket, theirs
    socket.close()
    for each in (theirs, ours):
        each.close()
    server.close()
    await server.wait_closed()


def make_body(socket: RawSocket, *, is_chunked: bool) -> RawBody:
    def lost() -> Fault:
        return Fault(FaultKind.CLIENT_LEFT, "left")

    return ChunkedRawBody(socket, ChunkedDecoder(), lost) if is_chunked else SizedRawBody(socket, 10**9, lost)


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_body_of_a_slow_sender_is_received_in_small_chunks(
    ends: tuple[RawSocket, asyncio.StreamWriter], *, is_chunked: bool
) -> None:
    """Memory of 2 MiB was made twice for each receive of 16 KiB."""
    socket, sender = ends
    body, memory = make_body(socket, is_chunked=is_chunked), ChunkMemory()
    for _ in range(20):
        sender.write(b"%x\r\n%b\r\n" % (len(PIECE), PIECE) if is_chunked else PIECE)
        size = 0
        while size < len(PIECE):
            size += len(await body.read())
            memory.size_next(body, 0.0, was_taken=True)
    assert body.chunk_bytes == MIN_CHUNK_BYTES

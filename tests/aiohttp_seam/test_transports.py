"""asyncio's transports: what is plain TCP, how much is received per call, when all was sent."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from gateway.aiohttp_seam import drain_write_buffer, is_plain_tcp, set_receive_size, socket_of
from gateway.transfer import acknowledged_bytes
from tests.aiohttp_seam.peers import PATIENCE_SECONDS, tcp_pair
from tests.certificates import Certificate


class Recorder(asyncio.Protocol):
    """Keeps what each call received, and waits for `resume_writing`."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        self.resumed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.received.put_nowait(data)

    def resume_writing(self) -> None:
        self.resumed.set()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.resumed.set()

    async def drain(self) -> None:
        await asyncio.wait_for(self.resumed.wait(), PATIENCE_SECONDS)


async def connect(ours: socket.socket) -> tuple[asyncio.Transport, Recorder]:
    transport, protocol = await asyncio.get_running_loop().connect_accepted_socket(Recorder, ours)
    return transport, protocol


async def test_open_tcp_connection_is_plain_until_it_is_closed() -> None:
    with tcp_pair() as (ours, _):
        transport, _ = await connect(ours)
        assert is_plain_tcp(transport)
        transport.close()
        assert not is_plain_tcp(transport)


async def test_unix_socket_is_not_plain_tcp() -> None:
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    with peer:
        transport, _ = await connect(ours)
        with contextlib.closing(transport):
            assert not is_plain_tcp(transport)


def test_no_transport_is_not_plain_tcp() -> None:
    assert not is_plain_tcp(None)


@pytest.mark.parametrize("size", [1, 3, 6])
async def test_transport_receives_at_most_what_is_set_per_call(size: int) -> None:
    with tcp_pair() as (ours, peer):
        transport, recorder = await connect(ours)
        with contextlib.closing(transport):
            set_receive_size(transport, size)
            peer.send(b"abcdef")
            assert await asyncio.wait_for(recorder.received.get(), PATIENCE_SECONDS) == b"abcdef"[:size]


async def test_draining_waits_until_the_write_buffer_is_empty_and_restores_its_limits() -> None:
    with tcp_pair() as (ours, peer):
        transport, recorder = await connect(ours)
        with contextlib.closing(transport):
            limits = transport.get_write_buffer_limits()
            data = bytes(2**23)
            transport.write(data)
            assert transport.get_write_buffer_size() > 0
            draining = asyncio.ensure_future(drain_write_buffer(transport, recorder.drain))
            received = 0
            loop = asyncio.get_running_loop()
            while received < len(data):
                received += len(await asyncio.wait_for(loop.sock_recv(peer, 2**20), PATIENCE_SECONDS))
            await draining
            assert transport.get_write_buffer_size() == 0
            assert transport.get_write_buffer_limits() == limits


async def test_draining_an_empty_write_buffer_does_not_wait() -> None:
    with tcp_pair() as (ours, _):
        transport, recorder = await connect(ours)
        with contextlib.closing(transport):
            await drain_write_buffer(transport, recorder.drain)
            assert not recorder.resumed.is_set()


async def test_socket_of_a_tls_transport_that_was_closed_twice_is_none(certificate: Certificate) -> None:
    """It raises AttributeError then; the check for stalls failed on it, and never ran again."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=certificate.server_context())
    port = server.sockets[0].getsockname()[1]
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=certificate.client_context())
    sock = socket_of(writer.transport)
    assert sock is not None
    assert sock.getpeername()[1] == port
    writer.transport.close()
    writer.transport.close()
    assert acknowledged_bytes(socket_of(writer.transport)) == 0
    assert socket_of(None) is None
    server.close()
    await server.wait_closed()

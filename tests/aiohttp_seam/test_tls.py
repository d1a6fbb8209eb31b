"""What is read of a connection over TLS that fails."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import select
import socket
import ssl
import weakref
from collections.abc import AsyncIterator

import aiohttp
import pytest
from yarl import URL

from gateway.aiohttp_seam import ClientConnection, LiveConnector, PoolRequest, socket_of
from gateway.transfer import Turns
from tests.aiohttp_seam.peers import KEPT_SECONDS, PATIENCE_SECONDS, reset, settle
from tests.certificates import Certificate

_PATIENCE_MILLISECONDS = 20_000
#: Of several records of TLS.
LONG = b"0123456789abcdef" * 4000


@contextlib.asynccontextmanager
async def connect_tls(certificate: Certificate) -> AsyncIterator[tuple[ClientConnection, ssl.SSLSocket]]:
    """Yield a connection over TLS that expects a response, and its peer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> ssl.SSLSocket:
            peer, _ = listener.accept()
            # Otherwise a response may wait for the acknowledgement of the session tickets, and is never sent.
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return certificate.server_context().wrap_socket(peer, server_side=True)

        url = URL.build(scheme="https", host="127.0.0.1", port=listener.getsockname()[1])
        connector = LiveConnector(Turns(), lambda seconds: None, limit=0)
        accepting = asyncio.ensure_future(asyncio.to_thread(accept))
        connection = await connector.take(PoolRequest(url, kept_seconds=KEPT_SECONDS), PATIENCE_SECONDS)
        connection.expect_response(may_have_body=True)
        with await accepting as peer:
            # The session tickets.
            await settle()
            yield connection, peer
        await connector.close()
        await settle()


def fail_send(connection: ClientConnection, peer: socket.socket) -> None:
    """Have the peer reset its connection, and send before the loop has looked at the socket."""
    transport = connection.transport
    sock = socket_of(transport)
    assert transport is not None
    assert sock is not None
    reset(peer)
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLHUP)
    assert poll.poll(_PATIENCE_MILLISECONDS)
    transport.write(b"x")


def response(body: bytes) -> bytes:
    return b"HTTP/1.1 413 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("body", [b"full", LONG], ids=["short", "long"])
@pytest.mark.parametrize("is_paused", [False, True], ids=["in the socket", "held by asyncio"])
async def test_response_that_came_before_the_reset_of_a_send_is_read(
    body: bytes, certificate: Certificate, *, is_paused: bool
) -> None:
    """It was lost: asyncio closed the socket before it called `connection_lost`."""
    async with connect_tls(certificate) as (connection, peer):
        if is_paused:
            assert connection.transport is not None
            connection.transport.pause_reading()
        peer.sendall(response(body))
        if is_paused:
            await settle()
        fail_send(connection, peer)
        message, content = await asyncio.wait_for(connection.read(), PATIENCE_SECONDS)
        assert message.code == 413
        assert await asyncio.wait_for(content.read(), PATIENCE_SECONDS) == body
        connection.drop()


async def test_body_that_only_the_close_ends_is_not_whole_before_the_reset_of_a_send(certificate: Certificate) -> None:
    async with connect_tls(certificate) as (connection, peer):
        peer.sendall(b"HTTP/1.1 200 OK\r\n\r\nthe beginning")
        fail_send(connection, peer)
        _, content = await asyncio.wait_for(connection.read(), PATIENCE_SECONDS)
        assert content.total_bytes == len(b"the beginning")
        with pytest.raises(aiohttp.ClientPayloadError):
            await asyncio.wait_for(content.read(), PATIENCE_SECONDS)
        connection.drop()


async def test_bytes_that_are_not_tls_before_the_reset_of_a_send_are_no_response(certificate: Certificate) -> None:
    async with connect_tls(certificate) as (connection, peer):
        with socket.socket(fileno=peer.detach()) as plain:
            plain.sendall(response(b"full"))
            fail_send(connection, plain)
            with pytest.raises(aiohttp.ClientOSError):
                await asyncio.wait_for(connection.read(), PATIENCE_SECONDS)
        connection.drop()


async def test_connection_over_tls_that_was_lost_needs_no_garbage_collection(certificate: Certificate) -> None:
    gc.disable()
    try:
        async with connect_tls(certificate) as (connection, peer):
            peer.sendall(response(b"full"))
            fail_send(connection, peer)
            await asyncio.wait_for(connection.read(), PATIENCE_SECONDS)
            await settle()
            connection.drop()
            lost = weakref.ref(connection)
            del connection
        assert lost() is None
    finally:
        gc.enable()

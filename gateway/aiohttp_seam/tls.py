"""asyncio's transport over TLS: what it leaves unread where a connection fails, and how one ended.

A response to an upload, and the reset after it, may come between the loop's last look at the socket and the next send.
The send fails then, and the response is still in the socket. asyncio reads no more. Without TLS, the socket is open
until `connection_lost` of the protocol has returned; over TLS, that is called after the socket was closed, so what is
left has to be read before. The kernel keeps what came before a reset (Linux).

Rejected: to look at the socket before each send, which costs a system call per chunk and leaves the time between the
two. Verified with Python 3.11; delete `call_before_close` when asyncio reads what came before the error of a send.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from asyncio import sslproto
from collections.abc import Callable, Iterator
from typing import Any, Final

from gateway.aiohttp_seam.transports import socket_of

_READ_BYTES: Final = 2**18


def call_before_close(transport: asyncio.BaseTransport, callback: Callable[[BaseException | None], None]) -> None:
    """Call a function, once, when a connection over TLS is lost, with the error if it failed; its socket is open then.

    Without TLS nothing is called.
    """
    if not isinstance(transport, sslproto._SSLProtocolTransport):
        return
    protocol: Any = transport._ssl_protocol
    lose = protocol.connection_lost

    def connection_lost(exc: BaseException | None) -> None:
        # It refers to the protocol: a reference cycle.
        del protocol.connection_lost
        try:
            callback(exc)
        finally:
            lose(exc)

    protocol.connection_lost = connection_lost


def read_unread(transport: asyncio.BaseTransport | None) -> Iterator[bytes]:
    """Yield what was received on a connection that failed, and not read; over TLS decrypted."""
    sock = socket_of(transport)
    if sock is None or sock.fileno() < 0:
        return
    with contextlib.suppress(OSError):
        # Raised where nothing more can be read: the reset itself, an empty socket, or a broken record of TLS.
        yield from _decrypt(transport, b"")
        while received := os.read(sock.fileno(), _READ_BYTES):
            yield from _decrypt(transport, received)


def is_closed_by_peer(transport: asyncio.BaseTransport | None) -> bool:
    """Return whether the end of a connection is its peer's: without TLS any, with TLS one with a close_notify."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object") if transport is not None else None
    if tls is None:
        return True
    try:
        # Everything before was read: this is the end, or there is none.
        return not tls.read(1)
    except ssl.SSLZeroReturnError:
        return True
    except ssl.SSLError:
        return False


def _decrypt(transport: asyncio.BaseTransport | None, received: bytes) -> Iterator[bytes]:
    """Yield the data of received bytes, and over TLS of those that asyncio holds. Raises ssl.SSLError."""
    if not isinstance(transport, sslproto._SSLProtocolTransport):
        if received:
            yield received
        return
    protocol: Any = transport._ssl_protocol
    tls: Any = transport.get_extra_info("ssl_object")
    protocol._incoming.write(received)
    with contextlib.suppress(ssl.SSLWantReadError):
        while data := tls.read(_READ_BYTES):
            yield data

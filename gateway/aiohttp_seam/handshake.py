"""TLS with a client, whose handshake takes turns.

asyncio works on every connection that is readable in the same iteration of the loop, and the response to a ClientHello
costs a signature: 0.5 ms with RSA of 2048 bits. 120 that arrived together held the loop for 60 ms. Here each receive of
a handshake is a step that waits for its turn. Meanwhile its connection is not read: what follows stays in the kernel. A
client that sends nothing takes no turn. The first request is part of the step if it comes with the client's Finished.

Rejected: to begin a few handshakes per iteration, since a client sends its ClientHello when it likes, and then all of
them have one to work on; a limit on handshakes begun and not ended, which clients that are far away, or silent, fill.

Verified with Python 3.11; delete when asyncio bounds the handshakes of an iteration.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio import sslproto
from collections.abc import Callable
from typing import Any, Protocol

from gateway.aiohttp_seam.transports import connect_accepted


class HandshakeTurns(Protocol):
    """When steps of handshakes may be taken: see `gateway.transfer.turns`."""

    def has_time_for_event(self) -> bool:
        """Return whether a callback of an event may take a step now."""
        ...

    def is_time_left(self) -> bool:
        """Return whether there is time in this iteration, though others may wait."""
        ...

    def call(self, step: Callable[[], None], /) -> None:
        """Call `step` when there is time."""
        ...


async def connect_accepted_tls(
    sock: socket.socket,
    protocol: asyncio.Protocol,
    context: ssl.SSLContext,
    *,
    turns: HandshakeTurns,
    handshake_seconds: float,
) -> None:
    """Connect a protocol to an accepted TCP socket over TLS; return when the handshake has ended.

    Raises OSError if it fails or takes longer than `handshake_seconds`. The socket is closed then, and if this is
    cancelled. `loop.connect_accepted_socket` does the same without turns.
    """
    loop = asyncio.get_running_loop()
    connected: Any = loop.create_future()
    seconds: Any = handshake_seconds
    tls = _ServerTls(loop, protocol, context, connected, server_side=True, ssl_handshake_timeout=seconds)
    tls.turns = turns
    # A BufferedProtocol, which typeshed does not count as one that transports take.
    transport = connect_accepted(sock, sock.getpeername(), tls)  # type: ignore[arg-type]  # see above
    try:
        await connected
    except asyncio.CancelledError:
        transport.abort()
        raise


class _ServerTls(sslproto.SSLProtocol):
    """asyncio's TLS, between the transport of a socket and the protocol of the connection."""

    turns: HandshakeTurns
    #: Whether what was received of the handshake waits for its turn, and whether the end was received after it.
    is_waiting = False
    has_ended = False
    # typeshed leaves these out.
    _state: sslproto.SSLProtocolState
    _transport: asyncio.Transport
    _incoming: ssl.MemoryBIO

    def buffer_updated(self, nbytes: int) -> None:
        """Work on what was received: in turns until the handshake has ended."""
        if self._state is not sslproto.SSLProtocolState.DO_HANDSHAKE:
            super().buffer_updated(nbytes)
        elif self.is_waiting:
            self._incoming.write(self.get_buffer(-1)[:nbytes])
            # Not before: nearly every client waits for the response first, and to pause costs two system calls.
            self._transport.pause_reading()
        elif self.turns.has_time_for_event():
            super().buffer_updated(nbytes)
        else:
            self._incoming.write(self.get_buffer(-1)[:nbytes])
            self.is_waiting = True
            self.turns.call(self._take_turn)

    def eof_received(self) -> bool | None:  # type: ignore[override]  # typeshed has only None
        """End the connection, after what came before the end."""
        if self.is_waiting:
            self.has_ended = True
            return True
        return super().eof_received()

    def _take_turn(self) -> None:
        self.is_waiting = False
        transport = self._transport
        if transport is None or transport.is_closing():
            # It was cut, or took too long, while it waited.
            return
        # This begins the time of the iteration, if nothing else has.
        self.turns.is_time_left()
        # Before the step, which may pause again.
        transport.resume_reading()
        super().buffer_updated(0)
        if self.has_ended and not super().eof_received():
            transport.close()

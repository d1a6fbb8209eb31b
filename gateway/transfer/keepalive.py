"""TCP keepalive: finds a peer whose machine or network is gone while nothing is sent to it.

Without it an exchange that waits, for a model that computes say, would hold its slot for a client that lost its power.
TCP_USER_TIMEOUT is not set: it also ends a connection whose peer is there and does not read (a zero window), which is
what the `idle` timeouts are for. Bytes that a dead peer does not acknowledge are their case as well.
"""

from __future__ import annotations

import socket
from typing import Any, Final

#: A peer is asked after this much silence, then so often, and is gone after three questions without an answer: together
#: 60 s, as the `idle` timeouts by default.
_IDLE_SECONDS: Final = 30
_INTERVAL_SECONDS: Final = 10
_PROBES: Final = 3


def set_keepalive(sock: socket.socket) -> None:
    """Turn keepalive on; of a listening socket, for the sockets it accepts (Linux)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS has other names for them.
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


def open_socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a socket with keepalive for getaddrinfo's 5-tuple: aiohttp's socket factory. Raises OSError."""
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        set_keepalive(sock)
    except BaseException:
        sock.close()
        raise
    return sock

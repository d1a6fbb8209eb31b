"""The listening socket of a port."""

from __future__ import annotations

import socket
from typing import Final

from gateway.config.values import Address

#: A peer that acknowledges nothing for this long is gone (TCP_USER_TIMEOUT), where no other timeout ends it.
_USER_TIMEOUT_MILLISECONDS: Final = 120_000
#: The kernel cuts it to net.core.somaxconn.
_BACKLOG: Final = 65_535


def open_listener(address: Address) -> socket.socket:
    """Return a socket that listens on the address. Raises OSError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Accepted sockets inherit it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MILLISECONDS)
        sock.bind((address.host, address.port))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock

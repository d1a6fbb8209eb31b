"""The listening sockets. A port that cannot be opened is a mistake of the config, not of the program."""

from __future__ import annotations

import errno
import socket
from typing import Final

from gateway.config.values import Address
from gateway.transfer import set_keepalive

#: The kernel cuts it to net.core.somaxconn.
_BACKLOG: Final = 65_535
_REASONS: Final = {
    errno.EADDRINUSE: "another process listens there: stop it, or choose another port",
    errno.EACCES: "this user may not open the port: choose one from 1024 on, or give the process CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "this machine does not have the address: choose one of its own, or 0.0.0.0 for all",
    errno.EAFNOSUPPORT: "this machine has no IPv6: choose an IPv4 address",
}


class ListenError(OSError):
    """A port cannot be opened. Its text has the config key, the address, the reason and how to mend it."""


def open_listener(address: Address, key: str) -> socket.socket:
    """Return a socket that listens at the address, the value of the config key `key`. Raises ListenError."""
    try:
        return _listen(address)
    except socket.gaierror as exc:
        reason = f"the name cannot be resolved ({exc.strerror}): give an address of this machine"
        raise ListenError(f"{key}: cannot listen on {address}: {reason}") from exc
    except OSError as exc:
        reason = _REASONS.get(exc.errno or 0) or f"{exc.strerror}: choose another address"
        raise ListenError(f"{key}: cannot listen on {address}: {reason}") from exc


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        set_keepalive(sock)
        sock.bind((address.host, address.port))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock

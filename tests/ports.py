"""Free ports for programs that cannot be given port 0."""

from __future__ import annotations

import contextlib
import secrets
import socket
from pathlib import Path
from typing import Final

_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: Below it are the ports of well-known services.
_LOWEST: Final = 10_000
_ATTEMPTS: Final = 100


def free_port() -> int:
    """Return a free port.

    Where it can be, it is one that the kernel does not choose itself: until the program has bound it, another test that
    runs at the same time would get it for a connection or for port 0.
    """
    with contextlib.suppress(FileNotFoundError):
        end = int(_RANGE.read_text().split()[0])
        for _ in range(_ATTEMPTS if end > _LOWEST else 0):
            port = _LOWEST + secrets.randbelow(end - _LOWEST)
            with contextlib.suppress(OSError):
                return _bind(port)
    return _bind(0)


def _bind(port: int) -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", port))
        bound: int = sock.getsockname()[1]
        return bound

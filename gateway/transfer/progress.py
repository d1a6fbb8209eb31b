"""How many bytes a peer has acknowledged: its progress, whatever kernels and transports hold on the way.

A socket call that returns means only that the kernel took the bytes, up to megabytes of them; and a kernel with full
buffers wakes a writer only after a third of them is free. So a peer that reads slowly and steadily looks silent for
minutes to the one that writes, while its acknowledgements arrive all the time. TCP counts those by itself, through TLS
as well, so nothing is added per chunk.
"""

from __future__ import annotations

import array
import fcntl
import functools
import socket
import struct
import termios
from collections.abc import Callable
from typing import Final, Protocol

#: Returns a number that rises when the peer acknowledges bytes.
Progress = Callable[[], int]

#: `tcpi_bytes_acked` of Linux's struct tcp_info (since 4.1), which only ever grows at its end.
_BYTES_ACKED: Final = struct.Struct("120xQ")


class TcpSocket(Protocol):
    """What is used of a socket; a transport's `socket` has it, too."""

    def fileno(self) -> int:
        """Return the descriptor, -1 once closed."""
        ...

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """Return an option's bytes."""
        ...


def no_progress() -> int:
    """Return 0: for a sink whose peer acknowledges nothing that can be seen."""
    return 0


def acknowledged_bytes(sock: TcpSocket | None) -> int:
    """Return a number that rises by the bytes that a socket's peer acknowledges; 0 without an open socket.

    Where the kernel does not count them (sandboxes), it rises while what is not acknowledged becomes less: enough to
    see that a peer still reads, not to hold it to a rate.
    """
    if sock is None or sock.fileno() < 0:
        return 0
    try:
        if _has_counter():
            return _count(sock)
        unacknowledged = array.array("i", [0])
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, unacknowledged)
    except OSError:
        return 0
    return -unacknowledged[0]


def _count(sock: TcpSocket) -> int:
    count: int = _BYTES_ACKED.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size))[0]
    return count


@functools.cache
def _has_counter() -> bool:
    """Return whether this kernel counts the bytes acknowledged; some sandboxes have the option and leave it 0."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as ours:
            # Not `create_connection`, which looks names up.
            ours.connect(listener.getsockname())
            with listener.accept()[0] as theirs:
                ours.sendall(b"x")
                # The answer acknowledges what it answers.
                theirs.sendall(theirs.recv(1))
                ours.recv(1)
                return _count(ours) > 0
    except (OSError, struct.error):
        return False

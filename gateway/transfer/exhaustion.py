"""Calls that fail because this process or the kernel has run out: the fault of the gateway, whatever was called."""

from __future__ import annotations

import errno
import socket
from typing import Final

from gateway.errors import Fault, FaultKind

_EXHAUSTED: Final = {
    errno.EMFILE: (
        FaultKind.OUT_OF_DESCRIPTORS,
        "The gateway has as many files and connections open as it may: try again, or raise its limit (ulimit -n).",
    ),
    errno.ENFILE: (
        FaultKind.OUT_OF_DESCRIPTORS,
        "The system has as many files open as it may: try again, or raise fs.file-max.",
    ),
    errno.ENOBUFS: (FaultKind.OUT_OF_MEMORY, "The kernel has no memory left for sockets: try again."),
    errno.ENOMEM: (FaultKind.OUT_OF_MEMORY, "The kernel has no memory left: try again."),
}


def exhaustion_fault(exc: OSError) -> Fault | None:
    """Return the fault of the gateway for a call that failed without descriptors or memory, None for other failures.

    Ask it before a peer or a file is blamed: the call would have failed for any of them.
    """
    if exc.errno not in _EXHAUSTED:
        return None
    kind, detail = _EXHAUSTED[exc.errno]
    return Fault(kind, detail, reason=str(exc), retry_after_seconds=1)


def descriptor_fault() -> Fault | None:
    """Return the fault of the gateway if it has no free descriptor now.

    For failures that do not say why: getaddrinfo(3) reports that a name does not resolve if it cannot open its files,
    and the client of object stores that it could not send.
    """
    try:
        socket.socket(socket.AF_UNIX).close()
    except OSError as exc:
        return exhaustion_fault(exc)
    return None

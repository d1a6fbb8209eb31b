"""Runs `gateway run`, and writes to standard error what its event loop does that may block, while it serves.

Python reports imports, opened files and other calls to the file system as audit events (PEP 578). Every one that the
thread of the event loop raises between the end of the start and the begin of the stop is written as one line, with the
place in the code. A hook cannot be removed, so this is a process of its own.
"""

from __future__ import annotations

import asyncio
import mimetypes
import sys
import threading
import traceback
from typing import Any, Final

from gateway.cli import main
from gateway.server import Gateway

#: Events of calls that may wait for a disk, the DNS or another process.
_EVENTS: Final = frozenset(
    {
        "import",
        "open",
        "marshal.load",
        "ctypes.dlopen",
        "fcntl.flock",
        "fcntl.lockf",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.gethostbyaddr",
        "socket.getnameinfo",
        "subprocess.Popen",
        "time.sleep",
    }
)
_PREFIXES: Final = ("os.", "shutil.", "tempfile.", "glob.", "pathlib.", "sqlite3.")
#: They need no disk.
_HARMLESS: Final = frozenset({"os.putenv", "os.unsetenv"})


class _Audit:
    """The hook. It is active while the gateway serves."""

    def __init__(self) -> None:
        self._loop_thread = threading.get_ident()
        self.is_active = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_active or threading.get_ident() != self._loop_thread:
            return
        if (event in _EVENTS or event.startswith(_PREFIXES)) and event not in _HARMLESS:
            self.is_active = False
            frames = traceback.extract_stack()[-8:-1]
            where = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
            sys.stderr.write(f"blocking: {event} {arguments!r:.200} in {where}\n")
            sys.stderr.flush()
            self.is_active = True


def _audit_serving(audit: _Audit) -> None:
    """Have the hook active from the end of `start` to the begin of `stop`."""
    start, stop = Gateway.start, Gateway.stop

    async def start_audited(gateway: Gateway) -> None:
        await start(gateway)
        # What the caller does before it serves is part of the start.
        asyncio.get_running_loop().call_soon(setattr, audit, "is_active", True)

    async def stop_audited(gateway: Gateway) -> None:
        audit.is_active = False
        await stop(gateway)

    Gateway.start, Gateway.stop = start_audited, stop_audited  # type: ignore[method-assign,assignment]  # in this process only


if __name__ == "__main__":
    # A table of MIME types, which this machine may lack: one that is read on first use is seen then.
    mimetypes.knownfiles.append(__file__)
    hook = _Audit()
    _audit_serving(hook)
    sys.addaudithook(hook)
    sys.exit(main())

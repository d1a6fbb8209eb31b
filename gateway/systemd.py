"""The service manager's protocol: sd_notify(3), its watchdog, and socket activation, sd_listen_fds(3).

Both are a few environment variables and one datagram, so no library is used. Without systemd everything here does
nothing. The variables are removed from the environment when they are read: child processes must not report for this
one.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final, Self

#: The first descriptor that socket activation passes.
_FIRST_DESCRIPTOR: Final = 3
#: The config key that a descriptor replaces, by its name (FileDescriptorName=); those without one come in this order.
_KEYS: Final = {"traffic": "listen", "ops": "ops.listen"}
#: Between two status lines, without a watchdog.
_STATUS_SECONDS: Final = 5.0


class Notifier:
    """Reports the state of this process to the service manager. Close it after use."""

    def __init__(self, address: str, watchdog_seconds: float | None) -> None:
        #: Between two reports; None without a service manager.
        self._interval_seconds: float | None = None
        self._socket: socket.socket | None = None
        if address:
            # A leading @ stands for the zero byte of an abstract address.
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            self._interval_seconds = min(_STATUS_SECONDS, (watchdog_seconds or math.inf) / 2)
            self._address = "\0" + address[1:] if address.startswith("@") else address

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """Return the notifier that NOTIFY_SOCKET and WATCHDOG_USEC describe, and remove them."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        process = environment.pop("WATCHDOG_PID", "")
        is_watched = microseconds.isdigit() and process in {"", str(os.getpid())}
        return cls(address, int(microseconds) / 1e6 if is_watched else None)

    def report_ready(self, status: str) -> None:
        """Report that start-up or a reload has ended."""
        self._send("READY=1", f"STATUS={status}")

    def report_reloading(self) -> None:
        """Report that a reload has begun; `report_ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def report_stopping(self, status: str) -> None:
        """Report that the process drains and will end."""
        self._send("STOPPING=1", f"STATUS={status}")

    async def run(self, status: Callable[[], str]) -> None:
        """Report that start-up has ended. Then feed the watchdog, and set the line that `systemctl status` shows.

        While the event loop is stuck, the watchdog gets nothing. Cancel it to stop.
        """
        self.report_ready(status())
        while self._interval_seconds is not None:
            await asyncio.sleep(self._interval_seconds)
            self._send("WATCHDOG=1", f"STATUS={status()}")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            # The manager is gone or its queue is full: serving goes on, and the next report may arrive.
            return


def take_sockets(environment: MutableMapping[str, str]) -> dict[str, socket.socket]:
    """Return the listening sockets of socket activation by the config key they replace, and remove the variables.

    Raises ValueError for more sockets than ports, for two of one port, and for others than TCP's.
    """
    process, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if process != str(os.getpid()) or not count.isdigit():
        return {}
    sockets: dict[str, socket.socket] = {}
    for position in range(int(count)):
        name = names[position] if position < len(names) else ""
        # Without a name of ours it has the name of its unit.
        key = _KEYS.get(name) or next((key for key in _KEYS.values() if key not in sockets), None)
        if key is None or key in sockets:
            raise ValueError(
                f"socket activation passed {count} sockets named {':'.join(names)!r}: pass one with "
                "FileDescriptorName=traffic and at most one with FileDescriptorName=ops."
            )
        descriptor = _FIRST_DESCRIPTOR + position
        os.set_inheritable(descriptor, False)
        sockets[key] = sock = socket.socket(fileno=descriptor)
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            raise ValueError(f"the socket for {key} is not a TCP socket: set ListenStream= to an address and a port.")
    return sockets

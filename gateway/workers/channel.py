"""The channel between the supervisor and a worker: messages over a pair of connected sockets.

    bytes   what
    ------  -----------------------------------------------------------
    4       length of the message's content, big endian
    1       `Kind`
    length  content: pickled, except that of the kinds in `UNREAD`

Messages arrive whole and in their order, or the channel has ended. It ends when either side closes it or dies; what a
worker sent before its death still arrives, also where sending to it has failed before that was read: its last counts.
Sending never blocks, so a worker that is stuck stops neither the supervisor nor the others. One that has not read
`MAX_HELD_BYTES` is given up: the channel ends.

Pickle is safe here: both ends are one program run by one user, and no other process has the sockets. JSON was rejected:
a config has addresses, expressions and enums in it, and small messages take three times as long.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import pickle
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, Self, cast

#: Held until the other side reads it. A config has at most 8 MiB, counts of 1,000 routes 5 MiB.
MAX_HELD_BYTES: Final = 64 * 2**20
_HEAD: Final = struct.Struct("!IB")
_RECEIVE_BYTES: Final = 256 * 1024
_log = logging.getLogger("gateway")


class Kind(enum.IntEnum):
    """What a message is about, who sends it, and its content."""

    #: Supervisor: begin to serve. A `worker.Start`.
    START = enum.auto()
    #: Worker: it accepts connections. None.
    READY = enum.auto()
    #: Worker: it cannot start. The reason as text.
    FAILED = enum.auto()
    #: Supervisor: make what a config needs, and keep the one in force. A number, and the Config.
    PREPARE = enum.auto()
    #: Worker: the end of PREPARE. Its number, and a list of reasons why the config cannot be used.
    PREPARED = enum.auto()
    #: Supervisor: put what was prepared in force. The number of its PREPARE.
    COMMIT = enum.auto()
    #: Supervisor: drop what was prepared, or is about to be. The number of its PREPARE.
    ABORT = enum.auto()
    #: Supervisor: drain. A `drain.Queue`.
    DRAIN = enum.auto()
    #: Worker: the drain is over. How many exchanges are left.
    DRAINED = enum.auto()
    #: Supervisor: end the drain, cut what is left, exit. None.
    STOP = enum.auto()
    #: Worker: asks for another in its place, because it was sent SIGTERM. None.
    RETIRE = enum.auto()
    #: Supervisor: send a SNAPSHOT now. None.
    SCRAPE = enum.auto()
    #: Worker: its counts, each second, on SCRAPE and at its end. Handlers get it as bytes.
    SNAPSHOT = enum.auto()
    #: Supervisor: whether endpoints are up.
    HEALTH = enum.auto()
    #: Worker: asks for, gives back or gives up leases of the gateway's limits.
    LEASE_REQUEST = enum.auto()
    #: Supervisor: grants leases, or asks for them back.
    LEASE_GRANT = enum.auto()
    #: Supervisor: asks for rows of the API. Number, `live.Question`, its arguments.
    QUERY = enum.auto()
    #: Worker: rows. Number of the QUERY, rows, whether they are the last.
    REPLY = enum.auto()
    #: Worker: its last failures, whenever there are others: within a second, and at its end. Rows.
    FAILURES = enum.auto()


#: Kinds whose handlers get the pickled bytes: a thread reads them.
UNREAD: Final = frozenset({Kind.SNAPSHOT})
#: What is done with the content of a message of each kind.
Handlers = Mapping[Kind, Callable[[Any], None]]


class Channel(asyncio.Protocol):
    """One end of a channel. Made by `open`; close it after use, unless it has ended."""

    def __init__(self, sock: socket.socket, handlers: Handlers, on_end: Callable[[], None]) -> None:
        self._sock = sock
        self._handlers = handlers
        self._on_end = on_end
        self._received = bytearray()
        self._transport: asyncio.WriteTransport | None = None
        #: Set when nothing more can arrive.
        self.ended = asyncio.Event()

    @classmethod
    async def open(cls, sock: socket.socket, handlers: Handlers, on_end: Callable[[], None]) -> Self:
        """Take over a connected socket. `on_end` is called once, when nothing more can arrive.

        `handlers` is looked at for each message: kinds may be added later. A message of another kind is an error line.
        """
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(sock, handlers, on_end), sock=sock)
        return channel

    @property
    def held_bytes(self) -> int:
        """Bytes sent that the kernel has not taken yet: the other side is behind."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    @property
    def is_open(self) -> bool:
        """Whether something can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, kind: Kind, content: object = None) -> None:
        """Send a message; nothing if the channel has ended."""
        self.send_pickled(kind, pickle.dumps(content, pickle.HIGHEST_PROTOCOL))

    def send_pickled(self, kind: Kind, content: bytes) -> None:
        """Send a message whose content is pickled."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(_HEAD.pack(len(content), kind) + content)
        if transport.get_write_buffer_size() > MAX_HELD_BYTES:
            transport.abort()

    def close(self) -> None:
        """Send what is held, then end the channel. Nothing that arrives meanwhile is handled."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the channel without sending what is held: for a worker that reads nothing."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Handle the messages that are whole now."""
        received = self._received
        received += data
        start = 0
        while len(received) >= start + _HEAD.size:
            length, kind = _HEAD.unpack_from(received, start)
            end = start + _HEAD.size + length
            if len(received) < end:
                break
            self._handle(kind, bytes(memoryview(received)[start + _HEAD.size : end]))
            start = end
        del received[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle what arrived before the end, then report the end."""
        self._transport = None
        if exc is not None:
            # Sending failed: reading has stopped, but the last messages of the other side may still be here.
            with contextlib.suppress(OSError):
                while data := self._sock.recv(_RECEIVE_BYTES):
                    self.data_received(data)
        self.ended.set()
        self._on_end()

    def _handle(self, kind: int, content: bytes) -> None:
        try:
            known = Kind(kind)
            self._handlers[known](content if known in UNREAD else pickle.loads(content))
        except Exception:
            # A bug in what is done with one message: those after it, and the worker's exchanges, go on.
            _log.exception("bug in the handling of a message of kind %s", kind)

"""TLS handshakes of clients, bounded in number and time.

Each holds 335 KiB and a place of `max_connections`, and a client that stalls in its own must hold neither for long.
Where another client needs its place, the oldest is cut if it takes longer than honest ones do. So neither a flood of
clients that stall nor one of honest clients keeps others out.

What their clients send is worked on in turns with the bodies: an iteration of the loop has time for a few only.

    begin   ->  connection_made  ->  is a connection like any other
            ->  on_failure           after its socket was closed: it failed, took too long, or was cut
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Final

from gateway.aiohttp_seam import connect_accepted_tls
from gateway.transfer import Turns

#: A TLS handshake takes a few round trips; asyncio's default is 60 s.
HANDSHAKE_SECONDS: Final = 10.0
#: TLS handshakes under way at once: 42 MiB.
MAX_HANDSHAKES: Final = 128
#: A handshake that takes longer than this is cut if another client needs its place.
STALLED_SECONDS: Final = 1.0


class Handshakes:
    """The TLS handshakes under way. Needs a running loop; `close` it after use.

    `on_room` is called when there is room again, `on_failure` for each connection whose handshake failed or was cut.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        make_protocol: Callable[[], asyncio.Protocol],
        turns: Turns,
        *,
        on_room: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._context = context
        self._make_protocol = make_protocol
        self._turns = turns
        self._on_room = on_room
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        #: Those whose protocol is not connected and whose socket is not closed yet.
        self._tasks: dict[asyncio.BaseProtocol, asyncio.Task[None]] = {}
        #: When each of those began that were not cut, the oldest first.
        self._began: dict[asyncio.BaseProtocol, float] = {}
        #: Runs while there is no room for another.
        self._room_timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many are under way; the sockets of those that were cut are closed in the next turn of the loop."""
        return len(self._tasks)

    @property
    def is_full(self) -> bool:
        """Whether `on_room` is still to be called, because there was no room for one more."""
        return self._room_timer is not None

    def has_room(self) -> bool:
        """Return whether one more may begin; cut the oldest for it if that stalls."""
        if len(self._tasks) < MAX_HANDSHAKES or self.make_room():
            return True
        self._room_timer = self._loop.call_later(self._stall_seconds(), self._end_pause)
        return False

    def make_room(self) -> bool:
        """Cut the oldest if it stalls; return whether it did."""
        if not self._began or self._stall_seconds() > 0:
            return False
        oldest = next(iter(self._began))
        del self._began[oldest]
        self._tasks[oldest].cancel()
        return True

    def begin(self, sock: socket.socket) -> None:
        """Begin the handshake of an accepted connection."""
        protocol = self._make_protocol()
        task = self._loop.create_task(self._run(sock, protocol), name="handshake")
        self._tasks[protocol] = task
        self._began[protocol] = self._loop.time()
        task.add_done_callback(partial(self._end, protocol, sock))

    def connection_made(self, protocol: asyncio.BaseProtocol) -> None:
        """Count the connection of a protocol that `begin` made no more: the protocol is connected."""
        if protocol in self._tasks:
            self._forget(protocol)

    async def close(self) -> None:
        """Cut all."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _run(self, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        # A handshake that fails ends only its connection.
        with contextlib.suppress(OSError):
            await connect_accepted_tls(
                sock, protocol, self._context, turns=self._turns, handshake_seconds=HANDSHAKE_SECONDS
            )

    def _end(self, protocol: asyncio.Protocol, sock: socket.socket, _task: asyncio.Task[None]) -> None:
        if protocol in self._tasks:
            # Its transport has closed it, if it was cut after its task had begun.
            sock.close()
            self._forget(protocol)
            self._on_failure()

    def _forget(self, protocol: asyncio.BaseProtocol) -> None:
        del self._tasks[protocol]
        self._began.pop(protocol, None)
        self._end_pause()

    def _stall_seconds(self) -> float:
        """Return after how long the oldest stalls; 0 or less if it does, or if all were cut."""
        began = next(iter(self._began.values()), 0.0)
        return began + STALLED_SECONDS - self._loop.time()

    def _end_pause(self) -> None:
        if self._room_timer is not None:
            self._room_timer.cancel()
            self._room_timer = None
            self._on_room()

"""TLS handshakes of clients, bounded in number and time.

Each holds 335 KiB, and a client that stalls in its own must hold none for long. Over the number, the oldest is cut if
it takes longer than honest ones do; otherwise there is no room for another. So neither a flood of clients that stall
nor one of honest clients keeps others out.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Final

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
        *,
        on_room: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._context = context
        self._make_protocol = make_protocol
        self._on_room = on_room
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        #: When each began, the oldest first.
        self._tasks: dict[asyncio.Task[None], float] = {}
        #: Runs while there is no room for another.
        self._room_timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many are under way."""
        return len(self._tasks)

    @property
    def is_full(self) -> bool:
        """Whether `on_room` is still to be called, because there was no room for one more."""
        return self._room_timer is not None

    def has_room(self) -> bool:
        """Return whether one more may begin; cut the oldest for it if that stalls."""
        if len(self._tasks) < MAX_HANDSHAKES:
            return True
        oldest, began = next(iter(self._tasks.items()))
        wait_seconds = began + STALLED_SECONDS - self._loop.time()
        if wait_seconds <= 0:
            oldest.cancel()
            del self._tasks[oldest]
            return True
        self._room_timer = self._loop.call_later(wait_seconds, self._end_pause)
        return False

    def begin(self, sock: socket.socket) -> None:
        """Begin the handshake of an accepted connection."""
        task = self._loop.create_task(self._run(sock), name="handshake")
        self._tasks[task] = self._loop.time()
        task.add_done_callback(self._end)

    async def close(self) -> None:
        """Cut all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, sock: socket.socket) -> None:
        is_connected = False
        try:
            # A handshake that fails ends only its connection.
            with contextlib.suppress(OSError):
                await self._loop.connect_accepted_socket(
                    self._make_protocol, sock, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS
                )
                is_connected = True
        finally:
            if not is_connected:
                self._on_failure()

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        self._end_pause()

    def _end_pause(self) -> None:
        if self._room_timer is not None:
            self._room_timer.cancel()
            self._room_timer = None
            self._on_room()

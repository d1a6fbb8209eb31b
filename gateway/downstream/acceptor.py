"""Accepts connections, and pauses where descriptors run out.

asyncio's server calls accept as often per wake-up as its backlog is long, and goes on at EMFILE: each failed call is a
log record and a timer, tens of thousands of them in a storm of connections. Here:

- Few calls per wake-up (nginx: `multi_accept off`). Between processes that share the socket, the one that waits takes
  the next connection, so a busy one takes fewer. The others stay in the kernel's queue, which is as long as the kernel
  allows.
- The kernel hands out the lowest free descriptor, so its number tells how many are in use. Clients get numbers below
  `first_kept`; those above are kept for upstreams, files and the ops port. HAProxy derives its `maxconn` from the limit
  in the same way.
- A connection counts from the moment of accept. Its protocol is connected later: bursts would exceed the limit.
- If a client waits, but no descriptor is free, or `max_connections` are open, accepting pauses. It goes on as soon as a
  connection closes, and otherwise tries again ten times a second. Meanwhile idle kept connections are closed, as nginx
  does, and TLS handshakes that stall are cut.
  Rejected: to accept and close at once with a spare descriptor; a client in the queue loses nothing.
- While there is no room for another TLS handshake (`handshakes`), accepting pauses.
- `spares` are descriptors held open that are given up, one by one, to accept where no other is free: the ops port
  answers while everything else is in use.
- With a `share`, several processes accept from the same socket. One that has more to do than another leaves a
  connection to that one, and looks again each millisecond: whether the connection still waits, and whether it still
  has more. It takes it all the same when the other has not been awake for a while. Rejected: SO_REUSEPORT, where a
  process that ends takes the connections in its queue along, and one that is stuck keeps its share of the clients; to
  leave a connection to the others for a fixed time, after which a process that is late by that much gets none.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from gateway.aiohttp_seam import connect_accepted
from gateway.downstream.handshakes import Handshakes
from gateway.transfer import Turns

#: Calls of accept per wake-up. One alone would let a loop with long turns fall behind.
_ACCEPTS: Final = 8
#: net.core.somaxconn of Linux. Clients that go on connecting do not keep `accept_queued` from its end.
_MAX_QUEUED: Final = 4096
_RETRY_SECONDS: Final = 0.1
#: Between two looks at a connection that is left to other processes: the resolution of epoll.
_DEFER_SECONDS: Final = 0.001
#: Between two log lines.
_QUIET_SECONDS: Final = 10.0
_FULL: Final = "max_connections are open; raise it"
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_log = logging.getLogger("gateway")


def raise_descriptor_limit() -> None:
    """Raise this process's limit of descriptors to the highest it may have (`ulimit -Hn`), as Go's runtime does.

    The lower limit that shells and service managers set protects programs that use select.
    """
    _, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS reports no limit and refuses to set that.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))


def half_of_descriptors() -> int:
    """Return half of this process's limit of descriptors: one for each client, and one for its upstream."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit // 2


class AcceptShare(Protocol):
    """The connections of this process beside those of others that accept from the same socket."""

    def total(self) -> int:
        """Return the connections of all processes."""
        ...

    def reserve(self, limit: int) -> bool:
        """Reserve a place for the connection that is accepted next, unless `limit` are taken; return whether it is.

        Where two processes take the last place at the same time, perhaps none gets it.
        """
        ...

    def end_reservation(self, *, is_accepted: bool) -> None:
        """Count the connection if it was accepted; its place is not reserved any more."""
        ...

    def may_accept(self, left_seconds: float) -> bool:
        """Return whether this process takes the next connection; False if it is to be left to one with less to do.

        `left_seconds` is how long a connection was left already.
        """
        ...

    def set_accepting(self, *, is_accepting: bool) -> None:
        """Record whether this process accepts connections now: none is left to one that does not."""
        ...

    def count(self, change: int) -> None:
        """Count connections that were accepted, or that were lost if it is negative."""
        ...


class Acceptor:
    """Accepts the connections of one listening socket, which it owns; `make_protocol` makes the protocol of each.

    Close it after use. Needs a running loop. Call `connection_made` for each protocol that is connected over TLS, and
    `connection_closed` for each that was lost.
    """

    def __init__(
        self,
        sock: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        *,
        context: ssl.SSLContext | None = None,
        turns: Turns | None = None,
        first_kept: int = sys.maxsize,
        spares: int = 0,
        open_connections: Callable[[], int] = lambda: 0,
        max_connections: Callable[[], int] = lambda: sys.maxsize,
        make_room: Callable[[], object] = lambda: None,
        share: AcceptShare | None = None,
    ) -> None:
        """`turns` are those that TLS handshakes share with others. `open_connections` returns how many protocols are
        connected.

        `make_room` is called, at most ten times a second, while accepting pauses until a connection closes.
        """
        self._sock = sock
        self._make_protocol = make_protocol
        self._first_kept = first_kept
        self._open_connections = open_connections
        self._max_connections = max_connections
        self._make_room = make_room
        self._share = share
        self._last_room = -_RETRY_SECONDS
        self._loop = asyncio.get_running_loop()
        #: None for plain connections.
        self._handshakes = (
            Handshakes(
                context, make_protocol, turns or Turns(), on_room=self._update, on_failure=self.connection_closed
            )
            if context is not None
            else None
        )
        #: Runs while a connection is left to others, since `_left_at`.
        self._deferral: asyncio.TimerHandle | None = None
        self._left_at: float | None = None
        self._queue = select.poll()
        self._queue.register(sock.fileno(), select.POLLIN)
        #: Plain connections whose protocol is not connected yet: that takes one turn of the loop.
        self._connecting_count = 0
        self._is_paused = False
        self._is_exhausted = False
        self._is_reading = False
        self._retry: asyncio.Handle | None = None
        self._last_line = -_QUIET_SECONDS
        sock.setblocking(False)
        self._spares = [os.dup(sock.fileno()) for _ in range(spares)]
        self._spare_count = spares
        self._update()

    @property
    def handshake_count(self) -> int:
        """Connections whose TLS handshake runs."""
        return len(self._handshakes) if self._handshakes is not None else 0

    @property
    def connection_count(self) -> int:
        """Connections that were accepted and not lost: their protocol is connected or will be, or fails to be."""
        return self._open_connections() + self.handshake_count + self._connecting_count

    def pause(self) -> None:
        """Accept nothing until `resume`: clients wait in the kernel's queue."""
        self._is_paused = True
        self._update()

    def resume(self) -> None:
        """Accept again."""
        self._is_paused = False
        self._update()

    def connection_made(self, protocol: asyncio.BaseProtocol) -> None:
        """Report that a protocol is connected: from now on `open_connections` counts it. Without effect without TLS."""
        if self._handshakes is not None:
            self._handshakes.connection_made(protocol)

    def connection_closed(self) -> None:
        """Report that a connection was lost: accepting goes on if it paused until one closes."""
        if self._share is not None:
            self._share.count(-1)
        if self._is_exhausted:
            # Its descriptor is closed when this turn of the loop is over.
            self._retry_by(self._loop.call_soon(self._try_again))

    async def accept_queued(self) -> bool:
        """Accept what the kernel's queue holds now, before `stop`: with the last descriptor of it, its queue is reset.

        A few per turn of the loop. Return False if accepting pauses, so that connections may be left in the queue: call
        it again later. Not for a socket that another process goes on to accept from.
        """
        for number in range(1, _MAX_QUEUED + 1):
            self._end_deferral()
            if not self._is_reading or not self._accept_one():
                break
            if number % _ACCEPTS == 0:
                # Others go on: 4,000 connections took 0.35 s.
                await asyncio.sleep(0)
        return self._is_reading

    def stop(self) -> None:
        """Stop accepting and close the socket. Connections whose handshake runs go on."""
        if self._sock.fileno() < 0:
            return
        self.pause()
        # There is nothing to go on with when a connection closes.
        self._is_exhausted = False
        if self._retry is not None:
            self._retry.cancel()
        if self._deferral is not None:
            self._deferral.cancel()
        while self._spares:
            os.close(self._spares.pop())
        self._sock.close()

    async def close(self) -> None:
        """Stop, and cut connections whose handshake runs."""
        self.stop()
        if self._handshakes is not None:
            await self._handshakes.close()

    def _update(self) -> None:
        is_full = self._handshakes is not None and self._handshakes.is_full
        is_accepting = not (self._is_paused or self._is_exhausted or is_full)
        is_wanted = is_accepting and self._deferral is None
        if is_wanted and not self._is_reading:
            self._loop.add_reader(self._sock.fileno(), self._accept)
        elif self._is_reading and not is_wanted:
            self._loop.remove_reader(self._sock.fileno())
        self._is_reading = is_wanted
        if self._share is not None:
            self._share.set_accepting(is_accepting=is_accepting)

    def _accept(self) -> None:
        for number in range(_ACCEPTS):
            if self._share is not None and not self._share.may_accept(self._left_seconds()):
                # After the first it is not certain that another waits: the event loop finds that out.
                if not number:
                    self._leave()
                return
            self._left_at = None
            if not self._accept_one():
                return

    def _left_seconds(self) -> float:
        return 0.0 if self._left_at is None else self._loop.time() - self._left_at

    def _leave(self) -> None:
        if self._left_at is None:
            self._left_at = self._loop.time()
        self._deferral = self._loop.call_later(_DEFER_SECONDS, self._look_again)
        self._update()

    def _look_again(self) -> None:
        """Accept, unless what waited was taken by another process."""
        self._end_deferral()
        if not self._is_client_waiting():
            self._left_at = None
        elif self._is_reading:
            self._accept()

    def _end_deferral(self) -> None:
        if self._deferral is not None:
            self._deferral.cancel()
            self._deferral = None
            self._update()

    def _accept_one(self) -> bool:
        """Accept a connection; return whether there may be more to accept now."""
        if not self._is_client_waiting():
            # Nothing pauses, and no connection is closed. Another process may have accepted the one of this wake-up.
            return False
        if self._handshakes is not None and not self._handshakes.has_room():
            self._update()
            return False
        try:
            if reason := self._why_none() or self._reserve():
                self._exhaust(reason)
                return False
            sock, peer = self._accept_reserved()
        except OSError as exc:
            return self._give_up_spare(exc)
        if self._handshakes is not None:
            self._handshakes.begin(sock)
        else:
            connect_accepted(sock, peer, self._make_protocol())
            self._connecting_count += 1
            self._loop.call_soon(self._end_connecting)
        return True

    def _give_up_spare(self, exc: OSError) -> bool:
        """Make room after an accept that failed; return whether another may succeed now."""
        # Others, such as ECONNABORTED, are failures of the connection that was to be accepted: accept(2).
        if exc.errno not in _EXHAUSTED:
            return False
        if self._spares:
            os.close(self._spares.pop())
            self._retry_by(self._loop.call_later(_RETRY_SECONDS, self._try_again))
            return True
        self._exhaust(f"{os.strerror(exc.errno)}; {_raise_limit()}")
        return False

    def _end_connecting(self) -> None:
        self._connecting_count -= 1

    def _reserve(self) -> str:
        """Reserve a place for the connection that is accepted next; return why there is none, "" if there is."""
        share = self._share
        return "" if share is None or share.reserve(self._max_connections()) else _FULL

    def _accept_reserved(self) -> tuple[socket.socket, Any]:
        is_accepted = False
        try:
            accepted = self._sock.accept()
            is_accepted = True
        finally:
            if self._share is not None:
                self._share.end_reservation(is_accepted=is_accepted)
        return accepted

    def _why_none(self) -> str:
        """Return why no client may be accepted now, "" if one may. Raises OSError if no descriptor at all is free."""
        count = self._share.total() if self._share is not None else self.connection_count
        if count >= self._max_connections():
            return _FULL
        lowest_free = os.dup(self._sock.fileno())
        os.close(lowest_free)
        if lowest_free < self._first_kept:
            return ""
        return f"the other descriptors are kept for upstreams and files; {_raise_limit()}"

    def _exhaust(self, reason: str) -> None:
        self._is_exhausted = True
        self._update()
        self._retry_by(self._loop.call_later(_RETRY_SECONDS, self._try_again))
        self._loop.call_soon(self._close_for_room)
        now = time.monotonic()
        if now >= self._last_line + _QUIET_SECONDS:
            self._last_line = now
            port = self._sock.getsockname()[1]
            _log.warning("accepting on port %d pauses until a connection closes: %s", port, reason)

    def _close_for_room(self) -> None:
        """Make room for the client that waits: cut a handshake that stalls, and close idle connections."""
        if self._handshakes is not None:
            self._handshakes.make_room()
        now = time.monotonic()
        if now >= self._last_room + _RETRY_SECONDS:
            self._last_room = now
            self._make_room()

    def _is_client_waiting(self) -> bool:
        return bool(self._queue.poll(0))

    def _retry_by(self, handle: asyncio.Handle) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._retry = handle

    def _try_again(self) -> None:
        """Take back the spares, then go on accepting if a descriptor for a client is free."""
        try:
            while len(self._spares) < self._spare_count:
                self._spares.append(os.dup(self._sock.fileno()))
            is_free = not self._why_none()
        except OSError:
            is_free = bool(self._spares)
        if is_free or not self._is_client_waiting():
            self._is_exhausted = False
            self._update()
        else:
            self._close_for_room()
        if self._is_exhausted or len(self._spares) < self._spare_count:
            self._retry_by(self._loop.call_later(_RETRY_SECONDS, self._try_again))


def _raise_limit() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"raise the limit of {limit} (ulimit -n)"

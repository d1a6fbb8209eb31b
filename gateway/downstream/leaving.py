"""Notices clients that leave while nothing is read from them.

A transport finds the end of its connection by reading. While a body waits for an upstream, a slot, a disk or a rate
limit, reading is paused, so a client that leaves would hold its slot until the wait ends, and the upstream would be
blamed for it. asyncio has no event for it; epoll has: EPOLLRDHUP is reported whatever was left unread (nginx uses it
for the same). An epoll object is itself readable, so one of it, with all paused connections, is one reader of the loop.

A client that ends only its sending side is one that leaves, as on a connection that is being read: nginx and Envoy do
the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import select

from gateway.aiohttp_seam import OnLeave


class LeaveWatch:
    """The connections that are not being read. Needs a running loop; close it after use."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        #: By descriptor: what is called, once.
        self._watched: dict[int, OnLeave] = {}
        self._loop.add_reader(self._epoll.fileno(), self._report)

    def start(self, descriptor: int, on_leave: OnLeave) -> None:
        """Call `on_leave` once the peer of a descriptor has left; at once if it has already."""
        if self._watched.get(descriptor) == on_leave or self._epoll.closed:
            return
        self._watched[descriptor] = on_leave
        self._epoll.register(descriptor, select.EPOLLRDHUP | select.EPOLLONESHOT)

    def stop(self, descriptor: int, on_leave: OnLeave) -> None:
        """Stop watching, if `on_leave` is what is called: a closed descriptor's number may have a new owner."""
        if self._watched.get(descriptor) == on_leave:
            del self._watched[descriptor]
            # A closed descriptor is watched no more.
            with contextlib.suppress(OSError):
                self._epoll.unregister(descriptor)

    def close(self) -> None:
        """Stop watching all of them."""
        if not self._epoll.closed:
            self._watched.clear()
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _report(self) -> None:
        for descriptor, events in self._epoll.poll(0):
            on_leave = self._watched.get(descriptor)
            if on_leave is not None:
                on_leave(was_reset=bool(events & select.EPOLLERR))

"""An event loop that runs the callbacks of ready sockets without a queue. Verified with Python 3.11 and 3.13.

asyncio's own loop appends them to those that were queued before, takes them from there one by one, and looks at the
clock and its timers before that: 2.5 of the 50 us of a small request. Where nothing is queued, no timer is due and
debug mode is off, which is most often so under load, they run from the list of the selector here. Every other
iteration is asyncio's. The order is the same: callbacks of sockets run in the order of the selector, what they queue
runs in the next iteration, after another look at the sockets.

uvloop gains nothing here (docs/benchmarks.md). Delete when asyncio's loop costs no more.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import time
from typing import Any, Final

#: epoll takes no more than 24.8 days; asyncio's iterations wait in steps of a day.
_LONGEST_SECONDS: Final = 86_400.0


def make_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop: asyncio's own where there is no epoll."""
    return DirectLoop() if hasattr(selectors, "EpollSelector") else asyncio.new_event_loop()


class DirectLoop(asyncio.SelectorEventLoop):
    """Asyncio's loop, whose iterations are short where only sockets are ready."""

    # What asyncio's loop has, and typeshed does not.
    _ready: Any
    _scheduled: list[Any]
    _stopping: bool

    def __init__(self) -> None:
        """Make its selector."""
        selector: Any = selectors.EpollSelector()
        #: Returns pairs of a descriptor and its events.
        self._poll = selector._selector.poll
        #: By descriptor, the selector's key, whose data are the handles of its reader and its writer.
        self._keys: dict[int, Any] = selector._fd_to_key
        super().__init__(selector)

    def _run_once(self) -> None:
        scheduled, seconds = self._scheduled, None
        is_direct = not (self._ready or self._stopping or self.get_debug())
        if is_direct and scheduled:
            timer = scheduled[0]
            seconds = timer._when - time.monotonic()
            is_direct = 0 < seconds <= _LONGEST_SECONDS and not timer._cancelled
        if is_direct:
            for handle in self._wait_for_sockets(seconds):
                # By the callback of another one.
                if not handle._cancelled:
                    handle._run()
        else:
            super()._run_once()  # type: ignore[misc]  # typeshed leaves it out

    def _wait_for_sockets(self, seconds: float | None) -> list[Any]:
        """Wait for ready sockets, None for ever; return the handles of what waits for them."""
        handles = []
        keys = self._keys
        for descriptor, events in self._poll(seconds, len(keys)):
            key = keys.get(descriptor)
            if key is not None:
                reader, writer = key.data
                # An error or the end of a connection is for both, as in the selectors module.
                if reader is not None and events & ~select.EPOLLOUT:
                    handles.append(reader)
                if writer is not None and events & ~select.EPOLLIN:
                    handles.append(writer)
        return handles

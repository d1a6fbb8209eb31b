"""Server-sent events: one snapshot per second, encoded once for all readers, and not at all while there is no reader.

A reader takes the newest event when it has written the one before, so a slow one skips events and holds one at most.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from gateway.ops.sending import write_in_slices

_INTERVAL_SECONDS: Final = 1.0
#: Readers woken at once, each of which copies an event into its socket, and the pause after them.
_BATCH: Final = 4
_PAUSE_SECONDS: Final = 0.001
#: Further readers are refused.
MAX_READERS: Final = 256
#: A reader that takes nothing for this long is gone.
_WRITE_SECONDS: Final = 30.0
_HEADERS: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
_log = logging.getLogger("gateway.ops")


class EventStream:
    """The readers of `GET /api/events`. `make` returns what an event carries, as JSON in one line."""

    def __init__(self, make: Callable[[], Awaitable[bytes]]) -> None:
        self._make = make
        self._readers = 0
        self._waiting: list[asyncio.Future[None]] = []
        #: The last event and its number.
        self._event = b""
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Send events until the reader leaves or the port closes."""
        if self._readers >= MAX_READERS or self._is_closed:
            return web.Response(
                status=503, text="Too many readers of events: try again\n", headers={"Retry-After": "5"}
            )
        self._readers += 1
        response = web.StreamResponse(headers=_HEADERS)
        try:
            await response.prepare(request)
            number = 0
            while not self._is_closed:
                if number == self._number or not self._event:
                    await self._wait()
                    continue
                number = self._number
                async with asyncio.timeout(_WRITE_SECONDS):
                    await write_in_slices(response, self._event)
        except (ConnectionError, TimeoutError):
            # Also one whose buffer is full: its connection is cut and not closed.
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._readers -= 1
        return response

    async def close(self) -> None:
        """End every reader's stream."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _wait(self) -> None:
        """Wait for the next event, or for the end of the stream."""
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._run(), name="events")
        waiter = loop.create_future()
        self._waiting.append(waiter)
        await waiter

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._readers:
                started = loop.time()
                event = await self._make()
                self._number += 1
                self._event = b"event: snapshot\nid: %d\ndata: %b\n\n" % (self._number, event)
                await self._wake()
                await asyncio.sleep(max(0.0, started + _INTERVAL_SECONDS - loop.time()))
        except Exception:
            # Whatever the bug is: it must not leave readers that wait forever.
            _log.exception("an event could not be made")
        finally:
            self._task = None
            # The next reader must not get one of long ago.
            self._event, self._number = b"", 0
            for waiter in self._waiting:
                if self._is_closed:
                    _finish(waiter)
                elif not waiter.done():
                    # An event could not be made: the streams break off, and readers connect again.
                    waiter.set_exception(ConnectionResetError("no event"))
            self._waiting.clear()

    async def _wake(self) -> None:
        # Those that are not woken yet stay in the list: the end of the task wakes them.
        for index in range(1, len(self._waiting) + 1):
            _finish(self._waiting.pop(0))
            if index % _BATCH == 0:
                await asyncio.sleep(_PAUSE_SECONDS)


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)

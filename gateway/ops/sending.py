"""Sends the responses of the ops port: in slices, and bounded in time and number.

aiohttp hands a whole body to the transport, which keeps a copy of what the kernel does not take, for as long as the
client likes: 200 clients that read nothing of 12 MB of metrics held 2.4 GB forever. Here a client has a limited time
for its response, and a body waits as one object, of which the transport has a slice.

Over the number of responses under way, the oldest is cut if it takes longer than honest clients need, and the new
request is refused otherwise. So neither slow clients nor many keep a scraper out for long. Rejected: to queue for a
place; a client that trickles would hold all of those that wait.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

#: Further requests have no place. Not counted: probes, and streams of events, which have a limit of their own.
MAX_RESPONSES: Final = 16
#: For one response. Prometheus gives up after 10 s.
SEND_SECONDS: Final = 30.0
#: A response that takes longer is cut if another client needs its place.
STALLED_SECONDS: Final = 1.0
_SLICE_BYTES: Final = 64 * 1024
_UNCOUNTED: Final = frozenset({"/healthz", "/readyz", "/drain", "/api/events"})


async def write_in_slices(response: web.StreamResponse, data: bytes) -> None:
    """Write the data so that the transport never holds much of it."""
    view = memoryview(data)
    for at in range(0, len(data), _SLICE_BYTES):
        await response.write(view[at : at + _SLICE_BYTES])


class Responses:
    """The responses under way on one port."""

    def __init__(self) -> None:
        #: When each began, by its connection, the oldest first.
        self._begun: dict[asyncio.Transport, float] = {}

    async def serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Run a handler and send its response; return it for aiohttp to end."""
        transport = request.transport
        if request.path in _UNCOUNTED or transport is None:
            return await handler(request)
        now = asyncio.get_running_loop().time()
        if not self._make_room(now):
            return web.Response(status=503, text="Too many requests at once: try again\n", headers={"Retry-After": "1"})
        self._begun[transport] = now
        try:
            response = await handler(request)
            body = response.body if isinstance(response, web.Response) and request.method != "HEAD" else None
            if not isinstance(body, bytes) or len(body) <= _SLICE_BYTES:
                return response
            large = web.StreamResponse(status=response.status, headers=response.headers)
            large.content_length = len(body)
            try:
                async with asyncio.timeout_at(now + SEND_SECONDS):
                    await large.prepare(request)
                    await write_in_slices(large, body)
            except (ConnectionError, TimeoutError):
                transport.abort()
            return large
        finally:
            self._begun.pop(transport, None)

    def _make_room(self, now: float) -> bool:
        """Return whether there is room for another response."""
        if len(self._begun) < MAX_RESPONSES:
            return True
        oldest, begun = next(iter(self._begun.items()))
        if now - begun < STALLED_SECONDS:
            return False
        del self._begun[oldest]
        oldest.abort()
        return True

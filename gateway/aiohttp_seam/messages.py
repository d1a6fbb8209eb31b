"""The messages of one connection of a client, one after another. Verified against aiohttp 3.14.5.

aiohttp makes a request, a writer and a task for every message, and has a response made by the handler sent: a tenth
of what a small request costs. Here the message goes to the handler, which sends the response itself, in the
connection's own task. So context variables that one request sets are seen by the next one of its connection.

A request that came whole while the connection's task waits for one (`gateway.http.whole_request`) does not go through
aiohttp's parser. It may be taken (`take`) before the task is woken for it. The task waits on meanwhile, and sees
nothing of it:

    call        valid                        effect
    take        set before the first byte    asked for every whole request; it takes or declines
    end_taken   once for a request taken     the handler may have the next message
    hand_over   in place of end_taken        the handler has the request after all, with what was made of it
    on_lost     set while one is taken       called when the connection is lost first: the handler will not have it
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gateway.aiohttp_seam.feed import Turns
from gateway.aiohttp_seam.heads import Message
from gateway.http.whole_request import WholeRequest

#: Takes a request of a connection (a `MessageLoop`), or declines it: then nothing of it may have been changed.
Take = Callable[[Any, WholeRequest], bool]


async def no_request(request: web.BaseRequest) -> web.StreamResponse:
    """Stand for the handler that aiohttp's own loop would call, see `MessageLoop.start`."""
    raise NotImplementedError(request)


class _Reading:
    """Takes the place of aiohttp's request: what it calls when the connection is lost before the response was sent."""

    __slots__ = ("_body",)

    def __init__(self, body: StreamReader) -> None:
        self._body = body

    def _cancel(self, exc: BaseException) -> None:
        self._body.set_exception(exc)


class MessageLoop(RequestHandler):
    """Has messages handled. `options` are those of aiohttp's RequestHandler.

    A subclass has `handle` and `refuse`, which send a response each.
    """

    __slots__ = ("_handed_over", "_idle_waiter", "_take", "_turns", "client", "on_lost")

    def __init__(self, server: web.Server, *, turns: Turns, take: Take | None, **options: Any) -> None:
        super().__init__(server, **options)
        self._turns = turns
        self._take = take
        #: What the task waits for, while a message is taken: it must not be woken.
        self._idle_waiter: asyncio.Future[None] | None = None
        #: What was made of a request that the handler has after all.
        self._handed_over: object = None
        #: Called when the connection is lost while a message is taken.
        self.on_lost: Callable[[], None] | None = None
        #: What `handle` remembers of the client from request to request.
        self.client: Any = None

    def handle(self, message: Message, body: StreamReader) -> Awaitable[bool]:
        """Respond to a request; return whether its connection may be kept. Raises nothing but CancelledError.

        It is cancelled when the connection is lost. `body` is empty for a request that came whole.
        """
        raise NotImplementedError

    @property
    def has_next(self) -> bool:
        """Whether something of a further request was received after the one being handled."""
        raise NotImplementedError

    async def refuse(self, exc: BaseException) -> None:
        """Respond to a head that could not be parsed. The connection closes: its client may still be sending."""
        raise NotImplementedError

    async def start(self) -> None:
        """Have one message after another handled, until the connection closes: in place of aiohttp's own loop."""
        try:
            while not self._force_close:
                if not self._messages:
                    self._waiter = self._loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                message, body = self._messages.popleft()
                if self.has_next and not self._turns.has_time():
                    # Pipelined. Clients that send many requests at once would all have one begun in the same iteration.
                    await self._turns.wait()
                    if self._force_close:
                        break
                self._begin_message()
                is_kept = await self._handle_message(message, body)
                if not is_kept or self._close or self._force_close:
                    break
                self._end_message()
        except BaseException:
            # Also when cancelled: where the next message begins is not known.
            self.force_close()
            raise
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    def _begin_message(self) -> None:
        """Make room for another message in the parser's queue."""
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()

    def _end_message(self) -> None:
        """Wait for the next message only so long, by the clock of asyncio's loops."""
        close_time = self._next_keepalive_close_time = time.monotonic() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(close_time, self._process_keepalive)

    async def _handle_message(self, message: Any, body: StreamReader) -> bool:
        if isinstance(message, _ErrInfo):
            await self.refuse(message.exc)
            return False
        reading: Any = _Reading(body) if body is not EMPTY_PAYLOAD else None
        self._current_request = reading
        # Both are for aiohttp's `shutdown`.
        self._request_in_progress = True
        try:
            is_kept = await self.handle(message, body)
        finally:
            self._current_request = None
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)
        if self._upgraded and not self._messages:
            self._decline_upgrade()
        return is_kept and body.is_eof()

    def _decline_upgrade(self) -> None:
        """Parse what came after a request for another protocol: it has got a response, and HTTP/1.1 goes on."""
        if self._parser is None:
            return
        self._parser.set_upgraded(False)
        self._upgraded = False
        tail, self._message_tail = self._message_tail, b""
        self.data_received(tail)
        if self._buffer_paused:
            self._resume_reading_if_drained()

    async def drain(self) -> None:
        """Wait while the transport's write buffer is too full. Raises ConnectionError if the connection is lost."""
        if self._drain_waiter is not None and self._drain_waiter.cancelled():
            # aiohttp leaves the future of a wait that was cancelled (3.14.5): the next wait would be cancelled at once.
            self._drain_waiter = None
        await self._drain_helper()

    def receive_whole(self, request: WholeRequest, waiter: asyncio.Future[None]) -> None:
        """Have a request taken, or wake the task for it, which waits for `waiter`."""
        self._request_count += 1
        if self._take is not None:
            # Without a waiter, parsing wakes nothing.
            self._waiter, self._idle_waiter = None, waiter
            if self._take(self, request):
                return
            self._waiter, self._idle_waiter = waiter, None
        messages: Any = self._messages
        messages.append((request, EMPTY_PAYLOAD))
        waiter.set_result(None)

    def end_taken(self) -> None:
        """Go on with the next message: the exchange of the one that was taken has ended, and the connection is kept."""
        waiter, self._idle_waiter = self._idle_waiter, None
        self.on_lost = None
        if waiter is None:
            return
        self._end_message()
        self._waiter = waiter
        if self._close or self._force_close:
            waiter.cancel()
        elif self._messages:
            waiter.set_result(None)

    def hand_over(self, request: WholeRequest, made: object) -> None:
        """Have the handler go on with the request that was taken; `made` is what `take_handed_over` returns then."""
        waiter, self._idle_waiter = self._idle_waiter, None
        self._handed_over = made
        messages: Any = self._messages
        messages.appendleft((request, EMPTY_PAYLOAD))
        self._waiter = waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def decline(self, made: object) -> None:
        """Record, before `take` declines a request, what `take_handed_over` returns when it is handled."""
        self._handed_over = made

    def take_handed_over(self) -> object:
        """Return what `hand_over` or `decline` was called with for the message that is handled now; None without."""
        made, self._handed_over = self._handed_over, None
        if made is not None:
            self.on_lost = None
        return made

    def lose_taken(self) -> None:
        """Report that the connection was lost, if a message is taken."""
        self._idle_waiter = None
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()

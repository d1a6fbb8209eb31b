"""One exchange on the express lane: its request was sent, and its response is awaited without a task.

state         event                                            next
------------  -----------------------------------------------  -----------------------------------------
sent          the response is here whole                       written
sent          anything else, or nothing for a while            handed over: `resume` waits for a response
written       the kernel has taken all of it                   ended
written       some of it waits in the transport                handed over: `resume` waits for the client
handed over   the handler's task calls `resume`                the normal path ends it
handed over,  the client's connection is lost                  a task of our own calls `resume` and is
or before                                                      cancelled at its first wait
"""

from __future__ import annotations

import asyncio
import enum
import sys
from typing import Any, Protocol

from aiohttp.streams import StreamReader

from gateway.actions import WholeForward
from gateway.aiohttp_seam import ParsedResponse, ServerConnection
from gateway.downstream import Exchange
from gateway.http.response_head import is_interim
from gateway.http.whole_request import WholeRequest
from gateway.http.whole_response import MAX_WHOLE_BYTES, WholeResponse
from gateway.runtime import Runtime
from gateway.upstream import Started


class Lane(Protocol):
    """The lane that an exchange is on."""

    def end(self, express: ExpressExchange, /) -> None:
        """Record the end of an exchange."""
        ...

    def leave(self, express: ExpressExchange, reason: HandOver, /) -> None:
        """Record that an exchange goes on in the normal path."""
        ...

    def run_cancelled(self, express: ExpressExchange, /) -> asyncio.Task[Any]:
        """Run the rest of an exchange in a task that is cancelled at its first wait."""
        ...


#: A request that was received, and the connection it came on.
Received = tuple[ServerConnection, WholeRequest]
#: The request that was sent, and the steps of its route.
Begun = tuple[WholeForward, Started]


class HandOver(enum.Enum):
    """Why an exchange goes on in the normal path."""

    #: The response was not here whole in time.
    SLOW = enum.auto()
    #: The response is too long, or its length is not known.
    LONG = enum.auto()
    INTERIM = enum.auto()
    #: The response cannot be passed on, or there is none.
    FAILED = enum.auto()
    #: The client does not take its response as fast as it comes.
    UNSENT = enum.auto()
    #: It was the last response of its connection, which closes.
    LAST = enum.auto()
    CLIENT_LEFT = enum.auto()
    CANCELLED = enum.auto()
    DRAIN = enum.auto()
    BUG = enum.auto()


class ExpressExchange:
    """One exchange under way. `ExpressLane.take` makes it, when its request was sent."""

    __slots__ = (
        "_action",
        "_bug",
        "_connection",
        "_is_handed_over",
        "_is_left",
        "_is_passed_on",
        "_lane",
        "_request",
        "_started",
        "_upstream",
        "exchange",
        "must_cancel",
        "runtime",
    )

    def __init__(self, lane: Lane, received: Received, exchange: Exchange, *, runtime: Runtime, begun: Begun) -> None:
        self.exchange = exchange
        #: The runtime it began with.
        self.runtime = runtime
        #: Whether its task is to be cancelled as soon as there is one.
        self.must_cancel = False
        self._lane = lane
        self._connection, self._request = received
        self._action, self._started = begun
        #: Whether the response was taken.
        self._is_passed_on = False
        self._bug: Exception | None = None
        self._is_handed_over = False
        self._is_left = False
        self._connection.on_lost = self._lose_client
        if self._started.connection is None:
            raise ValueError("the request was not sent")
        self._upstream = self._started.connection
        self._upstream.listener = self

    def cancel(self) -> None:
        """Have its task cancelled: it gets one. What `asyncio.Task.cancel` does for an exchange that has one."""
        self.must_cancel = True
        self.hand_over(HandOver.CANCELLED)

    def cancel_at_once(self) -> asyncio.Task[Any]:
        """Cancel it, in a task of its own; return the task."""
        self._stop_listening(HandOver.CANCELLED)
        self._connection.on_lost = None
        return self._lane.run_cancelled(self)

    def hand_over(self, reason: HandOver) -> None:
        """Have the task of the client's connection go on with it. Calls after the first change nothing."""
        if not self._is_handed_over:
            self._stop_listening(reason)
            self._connection.hand_over(self._request, self)

    async def resume(self) -> None:
        """Go on in the normal path, once. Raises Fault; cancelling cuts both peers."""
        try:
            if self._bug is not None:
                self._action.abandon(self.exchange, self._started, self._bug)
                raise self._bug
            if not self._is_passed_on:
                await self._action.resume(self.exchange, self._started)
            else:
                await self._action.send_rest(self.exchange)
        finally:
            self.leave()

    def leave(self) -> None:
        """Give the slot back, and count the exchange off. Calls after the first change nothing."""
        if not self._is_left:
            self._is_left = True
            self._action.capacity.give_back()
            self.exchange.stats.in_flight -= 1

    def take_whole(self, response: WholeResponse) -> bool:
        """Pass on a response that came whole; return False, with nothing changed, if that cannot be done."""
        if self.exchange.is_client_gone:
            return False
        try:
            self._pass_on(response)
        except Exception as exc:
            # Whatever it is, it is this exchange's: see `_fail`.
            self._fail(exc)
        return True

    def look(self) -> None:
        """Look at what came from the upstream and was parsed."""
        try:
            received = self._upstream.received_head
            if self._upstream.exception() is not None:
                self.hand_over(HandOver.FAILED)
            elif received is not None:
                self._judge(*received)
        except Exception as exc:
            # Whatever it is, it is this exchange's: see `_fail`.
            self._fail(exc)

    def _fail(self, bug: Exception) -> None:
        """Have the normal path end it with a bug: raised here, it would close the upstream's connection.

        Raises one that was met when it had ended, to be logged.
        """
        if self._is_handed_over:
            raise bug
        self._bug = bug
        self.hand_over(HandOver.BUG)

    def _judge(self, message: ParsedResponse, content: StreamReader) -> None:
        """Take a response that is here whole, wait for the rest of a small one, leave any other to the normal path."""
        if is_interim(message.code):
            self.hand_over(HandOver.INTERIM)
        elif content.exception() is not None:
            self.hand_over(HandOver.FAILED)
        elif content.is_eof() and content.total_bytes <= MAX_WHOLE_BYTES:
            # A client that is gone is reported next.
            if not self.exchange.is_client_gone:
                response = self._action.receive(self._started)
                if response is None:
                    # Its framing is refused.
                    self.hand_over(HandOver.FAILED)
                else:
                    self._pass_on(response)
        elif message.chunked or int(message.headers.get("Content-Length") or sys.maxsize) > MAX_WHOLE_BYTES:
            self.hand_over(HandOver.LONG)

    def _pass_on(self, response: WholeResponse) -> None:
        """Send a response to the client, which has all of it then, or the rest of it waits in the transport."""
        self._is_passed_on = True
        self._upstream.listener = None
        exchange = self.exchange
        if not self._action.pass_on(exchange, self._started, response):
            self.hand_over(HandOver.UNSENT)
        elif exchange.response is None or not exchange.response.keep_alive:
            self.hand_over(HandOver.LAST)
        else:
            self._end()

    def _end(self) -> None:
        """End it: the response was sent."""
        self.leave()
        self._is_handed_over = True
        try:
            self._lane.end(self)
        finally:
            # Also after a bug in the log: the client's connection would wait forever.
            self._connection.end_taken()

    def _lose_client(self) -> None:
        """Have the normal path end it: the client is gone, and so is the task of its connection."""
        self._stop_listening(HandOver.CLIENT_LEFT)
        self._lane.run_cancelled(self)

    def _stop_listening(self, reason: HandOver) -> None:
        if not self._is_handed_over:
            self._is_handed_over = True
            if not self._is_passed_on:
                self._upstream.stop_listening()
            self._lane.leave(self, reason)

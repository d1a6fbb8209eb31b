"""Takes requests for the express lane, and has the exchanges under way.

One timer for all of them looks a few times per second for those that take long, and hands them over; it runs only while
there are any. So a request costs no timer, and one that takes minutes is a task like any other.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any, Final, NamedTuple, Protocol

from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from gateway.aiohttp_seam import Message, ServerConnection
from gateway.downstream import Exchange
from gateway.errors import Fault
from gateway.express.exchange import Begun, ExpressExchange, HandOver
from gateway.http.routing import RouteMatch
from gateway.http.whole_request import WholeRequest
from gateway.runtime import Runtime

#: A request body up to this size is taken.
_MAX_BODY_BYTES: Final = 32 * 1024
#: Exchanges that are older than this are handed over; looked for as often.
_SLOW_SECONDS: Final = 0.05
#: Handed over in one turn of the loop.
_BATCH: Final = 200


class Declined(NamedTuple):
    """What is known of a request that was declined: the normal path need not find it out again."""

    exchange: Exchange
    runtime: Runtime
    #: The routes that match; None where they were not found.
    candidates: Sequence[RouteMatch] | None
    #: A bug that was met. The request may have been sent: it ends with the bug, and is not sent again.
    bug: Exception | None = None


class Host(Protocol):
    """Has every exchange, and runs those of the normal path."""

    #: The one in force.
    runtime: Runtime
    is_draining: bool

    def make_exchange(self, connection: ServerConnection, message: Message, content: StreamReader) -> Exchange:
        """Return the exchange of a message."""
        ...

    def begin(self, express: ExpressExchange) -> None:
        """Have it among the exchanges in flight."""
        ...

    def end(self, express: ExpressExchange) -> None:
        """Record that it has ended, and have it no more."""
        ...

    def resume(self, express: ExpressExchange) -> Coroutine[Any, Any, object]:
        """Run the rest of it in the normal path."""
        ...


class ExpressLane:
    """The express lane of one gateway."""

    def __init__(self, host: Host) -> None:
        self._host = host
        #: The exchanges that are on the lane, in the order in which they began.
        self.under_way: dict[ExpressExchange, None] = {}
        #: How many went on in the normal path, by why.
        self.handed_over: Counter[HandOver] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        #: Tasks of exchanges whose client has left.
        self._tasks: set[asyncio.Task[Any]] = set()

    def take(self, connection: ServerConnection, request: WholeRequest) -> bool:
        """Begin the exchange of a request; return False, with nothing changed, to decline."""
        runtime = self._host.runtime
        if not runtime.express or self._host.is_draining:
            return False
        if request.method == "HEAD" or len(request.body) > _MAX_BODY_BYTES:
            return False
        exchange, candidates, begun = self._host.make_exchange(connection, request, EMPTY_PAYLOAD), None, None
        bug: Exception | None = None
        try:
            candidates = exchange.find_routes(runtime.table)
            if candidates:
                begun = _begin(exchange, runtime, candidates[0])
        except Fault:
            # The normal path refuses it.
            pass
        except Exception as exc:
            # This runs in a callback of the connection: asyncio would close it, and the client get no response.
            bug = exc
        if begun is None:
            connection.decline(Declined(exchange, runtime, candidates, bug))
            return False
        # The request was sent: it must not be declined any more, which would send it again.
        express = ExpressExchange(self, (connection, request), exchange, runtime=runtime, begun=begun)
        self._add(express)
        return True

    def _add(self, express: ExpressExchange) -> None:
        """Have an exchange under way."""
        self.under_way[express] = None
        self._host.begin(express)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SLOW_SECONDS, self._sweep)

    def end(self, express: ExpressExchange) -> None:
        """Record the end of an exchange."""
        del self.under_way[express]
        self._host.end(express)

    def leave(self, express: ExpressExchange, reason: HandOver) -> None:
        """Record that an exchange goes on in the normal path."""
        del self.under_way[express]
        self.handed_over[reason] += 1

    def hand_over_all(self, reason: HandOver) -> None:
        """Hand over every exchange under way."""
        for express in list(self.under_way):
            express.hand_over(reason)

    def run_cancelled(self, express: ExpressExchange) -> asyncio.Task[Any]:
        """Run the rest of an exchange in a task that is cancelled at its first wait: it ends as one that had a task."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._host.resume(express), name="gateway exchange")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # After its first step: before it, nothing of the exchange would run.
        loop.call_soon(task.cancel)
        return task

    def _sweep(self) -> None:
        """Hand over the exchanges that take long."""
        latest = time.monotonic() - _SLOW_SECONDS
        slow = itertools.takewhile(lambda express: express.exchange.started <= latest, self.under_way)
        batch = list(itertools.islice(slow, _BATCH))
        for express in batch:
            express.hand_over(HandOver.SLOW)
        self._timer = None
        if self.under_way:
            seconds = _SLOW_SECONDS if len(batch) < _BATCH else 0
            self._timer = asyncio.get_running_loop().call_later(seconds, self._sweep)


def _begin(exchange: Exchange, runtime: Runtime, matched: RouteMatch) -> Begun | None:
    """Have the action of the route send the request; None, with nothing changed, where it does not. Raises Fault."""
    name = matched.route.name
    action = runtime.express.get(name)
    if action is None:
        return None
    exchange.enter_route(matched.route, runtime.stats[name])
    started = action.start(exchange, matched)
    if started is None:
        return None
    exchange.stats.in_flight += 1
    return action, started

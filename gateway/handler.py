"""Run exchanges: find the route, act, end.

`_run_exchange` is the one place where exchanges end: there a fault becomes a response or a cut, every exchange gets one
log line and is counted, and a bug becomes a 500 or a cut, never a body that looks complete.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from gateway.actions import match_form_route
from gateway.aiohttp_seam import UNREADABLE, Message, ServerConnection
from gateway.downstream import Exchange
from gateway.downstream.access_log import Describe, RecordLine
from gateway.downstream.live import LiveTransfers, RecentFailures
from gateway.errors import Blame, Fault, FaultKind
from gateway.express import Declined, ExpressExchange, ExpressLane, HandOver
from gateway.http.client import Client
from gateway.http.routing import RouteMatch
from gateway.observe.stats import Stats
from gateway.runtime import Runtime
from gateway.transfer import Timers

#: Of responses that say that an upstream failed.
_FIRST_FAILURE: Final = 500
_log = logging.getLogger("gateway")

#: What cancels an exchange.
Cancellable = asyncio.Task[Any] | ExpressExchange


class ExchangeHandler:
    """Runs every exchange, with the runtime in force when its head is here."""

    #: The one in force: set before the first exchange, and by each reload.
    runtime: Runtime

    def __init__(
        self,
        stats: Stats,
        timers: Timers,
        record: RecordLine,
        *,
        describe: Describe,
        scheme: bytes,
    ) -> None:
        self._no_route = stats.routes[Stats.NO_ROUTE]
        self._timers = timers
        self._record_line = record
        self._describe = describe
        self._scheme = scheme
        #: The exchanges in flight, by what cancels them: their tasks, and those of the express lane.
        self._exchanges: dict[Cancellable, Exchange] = {}
        self.express = ExpressLane(self)
        self.live = LiveTransfers(self._exchanges)
        self.failures = RecentFailures()
        self.is_draining = False

    @property
    def exchange_count(self) -> int:
        """Exchanges in flight."""
        return len(self._exchanges)

    def remaining_bytes(self) -> list[int | None]:
        """Return the bytes still to come of each exchange in flight, None where that is not known."""
        return [exchange.remaining_bytes for exchange in self._exchanges.values()]

    def begin_drain(self) -> None:
        """From now on, close connections after their response; also those of exchanges in flight."""
        self.is_draining = True
        for exchange in self._exchanges.values():
            exchange.is_draining = True
        self.express.hand_over_all(HandOver.DRAIN)

    def cancel_exchanges(self) -> list[asyncio.Task[Any]]:
        """Cancel the exchanges in flight, and return their tasks."""
        tasks: list[asyncio.Task[Any]] = []
        for each in list(self._exchanges):
            if isinstance(each, ExpressExchange):
                tasks.append(each.cancel_at_once())
            elif isinstance(each, asyncio.Task):
                each.cancel()
                tasks.append(each)
        return tasks

    async def handle(self, connection: ServerConnection, message: Message, content: StreamReader) -> bool:
        """Run one exchange from its head to its end; return whether its connection may be kept.

        Raises nothing but CancelledError.
        """
        begun = connection.take_handed_over()
        if isinstance(begun, ExpressExchange):
            return await self.resume(begun)
        if isinstance(begun, Declined) and (begun.runtime is self.runtime or begun.bug is not None):
            exchange, runtime, candidates, bug = begun
            exchange.is_draining = self.is_draining
        else:
            exchange, runtime = self.make_exchange(connection, message, content), self.runtime
            candidates = bug = None
        act = self._find_and_act(exchange, runtime, candidates) if bug is None else _raise(bug)
        return await self._run(exchange, runtime, act)

    async def resume(self, express: ExpressExchange) -> bool:
        """Run the rest of an exchange that the express lane began: what `handle` does for others."""
        if express.must_cancel:
            asyncio.get_running_loop().call_soon(self._cancel, asyncio.current_task(), express.exchange)
        self._exchanges.pop(express, None)
        with express.runtime.exchanges:
            # Only now: with none in flight, a runtime that was replaced would be closed.
            express.runtime.exchanges.__exit__(None, None, None)
            return await self._run(express.exchange, express.runtime, express.resume())

    def _cancel(self, task: asyncio.Task[Any] | None, exchange: Exchange) -> None:
        """Cancel the task of an exchange, unless it has ended: the task may run the next one by now."""
        if task is not None and self._exchanges.get(task) is exchange:
            task.cancel()

    async def _run(self, exchange: Exchange, runtime: Runtime, act: Awaitable[None]) -> bool:
        """Run an exchange: `act` is what it does, and raises Fault."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an exchange needs a task")
        self._exchanges[task] = exchange
        with runtime.exchanges:
            try:
                await self._run_exchange(exchange, act)
                return await exchange.finish()
            finally:
                del self._exchanges[task]

    def make_exchange(self, connection: ServerConnection, message: Message, content: StreamReader) -> Exchange:
        """Return the exchange of a message."""
        trusted = self.runtime.config.trusted_proxies
        client = connection.client
        if not isinstance(client, Client) or client.trusted is not trusted:
            # The first request of the connection, or the first after a reload.
            client = connection.client = Client(connection.peer_address, self._scheme, trusted)
        exchange = Exchange(connection, message, content, client=client, stats=self._no_route, timers=self._timers)
        exchange.is_draining = self.is_draining
        return exchange

    def begin(self, express: ExpressExchange) -> None:
        """Have an exchange of the express lane among those in flight."""
        self._exchanges[express] = express.exchange
        express.runtime.exchanges.__enter__()

    def end(self, express: ExpressExchange) -> None:
        """Record that an exchange of the express lane has ended."""
        del self._exchanges[express]
        express.runtime.exchanges.__exit__(None, None, None)
        self._record(express.exchange)

    async def _run_exchange(self, exchange: Exchange, act: Awaitable[None]) -> None:
        try:
            try:
                await act
            except Fault as fault:
                exchange.fail(fault)
            except asyncio.CancelledError:
                if not exchange.is_delivered:
                    exchange.fail(exchange.why_cancelled())
                if not _was_cancelled_by_operator_only(exchange):
                    raise
            except Exception:
                # The one place where a bug becomes a response or a cut.
                _log.exception("bug in exchange %s", exchange.trace.request_id.decode("latin-1"))
                exchange.fail(Fault(FaultKind.BUG, "The gateway failed; its log has the reason."))
        finally:
            self._record(exchange)
            for transfer in (exchange, exchange.upload, exchange.download):
                if transfer is not None and transfer.fault is not None:
                    transfer.fault.drop_tracebacks()

    async def _find_and_act(
        self, exchange: Exchange, runtime: Runtime, candidates: Sequence[RouteMatch] | None
    ) -> None:
        """Find the route, unless its candidates are known, and have its action run the exchange. Raises Fault."""
        if candidates is None:
            candidates = exchange.find_routes(runtime.table)
        if not candidates:
            # OPTIONS *: asks about the gateway itself (RFC 9110 section 9.3.7).
            await exchange.reply(204, (), b"")
            return
        matched = candidates[0]
        if matched.route.match.form_fields:
            matched = await match_form_route(exchange, candidates)
        stats = runtime.stats[matched.route.name]
        exchange.enter_route(matched.route, stats)
        stats.in_flight += 1
        try:
            await runtime.actions[matched.route.name](exchange, matched)
        finally:
            stats.in_flight -= 1

    def _record(self, exchange: Exchange) -> None:
        stats, status = exchange.stats, exchange.status
        seconds = exchange.waits.finish() - exchange.started
        self._record_line(self._describe(exchange, status, seconds))
        stats.count_exchange(exchange.method, status, seconds, exchange.first_byte_seconds)
        if exchange.fault is not None or exchange.worst_file is not None or status >= _FIRST_FAILURE:
            self.failures.add(exchange, seconds, _count_failure(exchange))

    def cancel(self, transfer_id: str, operator: str) -> bool:
        """Cancel an exchange for an operator at an address; return whether there is one under way with this id."""
        exchange = self.live.cancel(transfer_id)
        if exchange is None:
            return False
        request_id = exchange.trace.request_id.decode("latin-1")
        keys = {"event": "transfer_cancelled", "id": transfer_id, "request_id": request_id, "operator": operator}
        _log.info("an operator at %s cancelled the request %s", operator, request_id, extra={"keys": keys})
        return True

    async def refuse(self, connection: ServerConnection, fault: Fault) -> None:
        """Refuse a request whose head could not be parsed: nothing in it is used."""
        exchange = self.make_exchange(connection, UNREADABLE, EMPTY_PAYLOAD)
        exchange.fail(fault)
        self._record(exchange)
        await exchange.finish()


async def _raise(bug: Exception) -> None:
    raise bug


def _count_failure(exchange: Exchange) -> Blame:
    """Count an exchange that failed; return the blame. Without a fault, the status is one that an upstream chose."""
    stats = exchange.stats
    blame = Blame.UPSTREAM if exchange.blame is Blame.NONE else exchange.blame
    stats.failures[blame] += 1
    if exchange.fault is not None:
        stats.faults[exchange.fault.kind.code] += 1
    return blame


def _was_cancelled_by_operator_only(exchange: Exchange) -> bool:
    """Return whether nothing else cancelled the current task; then its connection ends as after any other fault.

    So the client can read the response while it still sends. A client that left and a gateway that stops cancel, too.
    """
    task = asyncio.current_task()
    return exchange.is_operator_cancelled and task is not None and task.uncancel() == 0

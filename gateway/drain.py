"""Drain: let exchanges finish before the gateway stops. A signal or GET /drain begins it, and nothing takes it back.

    phase     new connections     /readyz   ends with
    --------  ------------------  --------  -------------------------------------------------------
    delay     accepted            503       `drain_delay`
    waiting   refused             503       the last exchange and connection, or `drain_timeout`

From its beginning, every response closes its connection. No request that reached this machine is lost: what waits in
the kernel's queue is accepted before the socket is closed, and a request that arrives on a kept connection is served.
The exception: where no connection or descriptor becomes free for a second, the rest of the queue is reset. To wait for
room until `drain_timeout` would admit new clients all the time.
Idle kept connections are closed after the delay; with none, a client may send a request at the moment its connection is
closed, as with every keep-alive timeout. Others do it this way, too: nginx and HAProxy close idle connections at once,
Envoy announces the close in every response first. With a delay, both.

One worker of several that is replaced or not needed any more leaves the queue to the others, and has no delay.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from typing import Final

from gateway.downstream import TrafficServer
from gateway.downstream.acceptor import Acceptor
from gateway.handler import ExchangeHandler
from gateway.observe.units import show_bytes

#: For what is on its way: connections that cannot be accepted yet, and the request heads of those that were.
_HEAD_SECONDS: Final = 1.0
#: Between two looks at the connections.
_PAUSE_SECONDS: Final = 0.05
#: Connections looked at in one turn of the loop.
_BATCH: Final = 100
#: Between two log lines, if the number of exchanges changed or not.
_CHANGED_SECONDS, _UNCHANGED_SECONDS = 1.0, 5.0
_log = logging.getLogger("gateway")


class Queue(enum.Enum):
    """What becomes of the connections in the kernel's queue."""

    #: They are accepted first.
    ACCEPTED = enum.auto()
    #: Other processes accept from it.
    LEFT = enum.auto()


async def drain(
    handler: ExchangeHandler,
    traffic: TrafficServer,
    acceptor: Acceptor,
    *,
    delay_seconds: float,
    timeout_seconds: float,
    queue: Queue = Queue.ACCEPTED,
) -> None:
    """Drain; return after the last exchange, or when the time is over: then exchanges are left.

    Cancelling it leaves the rest of the exchanges in flight, and perhaps the socket open.
    """
    handler.begin_drain()
    more = f"connections are accepted for {delay_seconds:g} s more" if delay_seconds else "no connection is accepted"
    _log.info("drain started: %s", more)
    await asyncio.sleep(delay_seconds)
    if queue is Queue.ACCEPTED:
        await _accept_last(acceptor, traffic)
    acceptor.stop()
    try:
        async with asyncio.timeout(timeout_seconds):
            await _wait_for_last(handler, traffic, acceptor)
    except TimeoutError:
        _log.warning("drain_timeout of %g s is over: %s", timeout_seconds, _describe_rest(handler))
    else:
        _log.info("drain ended: no exchange is left")


async def _accept_last(acceptor: Acceptor, traffic: TrafficServer) -> None:
    """Accept what the kernel's queue holds. Where accepting pauses, make room and wait a while for it."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _HEAD_SECONDS
    while not await acceptor.accept_queued() and loop.time() < deadline:
        # They are closed next in any case.
        await _close_idle(traffic, is_head_due=False)
        await asyncio.sleep(_PAUSE_SECONDS)


async def _wait_for_last(handler: ExchangeHandler, traffic: TrafficServer, acceptor: Acceptor) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    reported_count, reported_at = 0, started - _CHANGED_SECONDS
    while True:
        is_head_due = loop.time() >= started + _HEAD_SECONDS
        await _close_idle(traffic, is_head_due=is_head_due)
        # A connection that was accepted or closed shows in the turn after.
        await asyncio.sleep(0)
        count = handler.exchange_count
        if not count and not traffic.connections and (is_head_due or not acceptor.handshake_count):
            return
        quiet_seconds = loop.time() - reported_at
        if count and quiet_seconds >= (_CHANGED_SECONDS if count != reported_count else _UNCHANGED_SECONDS):
            reported_count, reported_at = count, loop.time()
            _log.info("draining: %s; SIGTERM or Ctrl-C again to stop now", _describe_rest(handler))
        await asyncio.sleep(_PAUSE_SECONDS)


async def _close_idle(traffic: TrafficServer, *, is_head_due: bool) -> None:
    for index, connection in enumerate(traffic.connections):
        if index % _BATCH == _BATCH - 1:
            await asyncio.sleep(0)
        traffic.close_if_idle(connection, is_head_due=is_head_due)


def _describe_rest(handler: ExchangeHandler) -> str:
    count = handler.exchange_count
    known = [size for size in handler.remaining_bytes() if size is not None]
    text = f"{count} exchange{'s' * (count != 1)} left"
    return text + (f", {show_bytes(sum(known))} to go" if known else "")

"""Limits that hold over all workers: what a worker and its supervisor send each other about them.

A limit has the name of its config key, such as `upstreams.asr.max_in_flight`. The supervisor leases its slots to the
workers, in the order in which it receives their requests (`workers/leases.py`). A worker keeps some leases that it does
not use, so that a request costs no message while there are enough for all; the supervisor takes them back when another
worker needs them. Messages between two processes arrive in order:

    to the supervisor       to the worker
    Join                                        the limit holds from now on; this many exchanges run already
    Ask                                         an exchange waits for a slot
                            Grant               the slot is its own
                            Refuse              the queue is full
    Withdraw                                    it waits no longer. The grant may be under way: then the worker has a
                                                lease that it does not use
    GiveBack                                    leases that are not used any more
                            Keep                how many leases may be kept unused; others are given back at once
    Kept                                        confirms a Keep, with the number of leases given back
    Leave                                       the limit does not hold for the worker any more

`Leave` and a `Join` after it are two reloads. No process applies the second before the supervisor has received all that
the first has led to: every worker confirms that it is prepared.

Rejected: counters in shared memory. A worker that is killed in the middle of a change leaves them wrong, and the order
of arrival would need a queue there as well.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar


class Join(NamedTuple):
    """A worker applies a limit; `held` exchanges of it run already, which began without one."""

    limit: str
    held: int


class Leave(NamedTuple):
    """A worker does not apply a limit any more: what it held and what it asked for is void."""

    limit: str


class Ask(NamedTuple):
    """An exchange waits for a slot. `number` is its own within the worker, and rises."""

    limit: str
    number: int


class Withdraw(NamedTuple):
    """An exchange waits no longer: its client left, or its time is over."""

    limit: str
    number: int


class GiveBack(NamedTuple):
    """A worker returns leases."""

    limit: str
    leases: int


class Kept(NamedTuple):
    """A worker confirms a Keep, and returns `leases`."""

    limit: str
    leases: int


class Grant(NamedTuple):
    """The exchange has its slot."""

    limit: str
    number: int


class Refuse(NamedTuple):
    """The queue is full: this many exchanges are in flight, and this many wait, over all workers."""

    limit: str
    number: int
    in_flight: int
    waiting: int


class Keep(NamedTuple):
    """A worker may keep this many leases unused; it confirms with Kept."""

    limit: str
    leases: int


class AskBytes(NamedTuple):
    """A worker needs bytes of a rate: `size` of them, at `rate` bytes per second over all workers."""

    limit: str
    number: int
    size: int
    rate: float


class WithdrawBytes(NamedTuple):
    """Bytes are not needed any more."""

    limit: str
    number: int


class GiveBackBytes(NamedTuple):
    """A worker returns bytes whose grant has crossed its WithdrawBytes."""

    limit: str
    size: int


class GrantBytes(NamedTuple):
    """The bytes are granted."""

    limit: str
    number: int
    size: int


class Failed(NamedTuple):
    """A request failed on an endpoint."""

    limit: str
    endpoint: str
    reason: str


class Succeeded(NamedTuple):
    """A request did not fail on an endpoint whose last one did."""

    limit: str
    endpoint: str


class EndpointHealth(NamedTuple):
    """Whether an endpoint is up by its checks and not ejected, and whether its last request failed."""

    is_up: bool
    is_ejected: bool
    has_failed: bool


ToSupervisor = (
    Join | Leave | Ask | Withdraw | GiveBack | Kept | AskBytes | WithdrawBytes | GiveBackBytes | Failed | Succeeded
)
ToWorker = Grant | Refuse | Keep | GrantBytes
#: By the name of the upstream, then by endpoint.
Health = dict[str, dict[str, EndpointHealth]]
W = TypeVar("W")


class SharedLimits:
    """The limits of one worker that hold over all of them. Used in one event loop.

    `send` sends messages to the supervisor, those of one iteration of the loop at once. The owner passes on what the
    supervisor sends.
    """

    def __init__(self, send: Callable[[list[ToSupervisor]], None]) -> None:
        #: Workers among which a limit is divided that is not leased.
        self.worker_count = 1
        self._send = send
        self._outbox: list[ToSupervisor] = []
        self._receivers: dict[str, Callable[[ToWorker | None], None]] = {}
        self._numbers = itertools.count()
        #: What waits for bytes, by the number of its AskBytes.
        self._byte_receivers: dict[int, Callable[[int | None], None]] = {}
        self._health: Health = {}
        self._health_receivers: dict[str, Callable[[dict[str, EndpointHealth]], None]] = {}
        self._has_supervisor = True

    def post(self, message: ToSupervisor) -> None:
        """Send a message at the end of this iteration: connections that it aborts are closed before their slots are.

        Otherwise an upstream could see the next exchange before the end of the last.
        """
        if not self._outbox:
            # Twice: what is aborted after this message is closed in the next iteration, too.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._flush)
        self._outbox.append(message)

    def receive(self, messages: Iterable[ToWorker]) -> None:
        """Pass messages of the supervisor on."""
        for message in messages:
            if isinstance(message, GrantBytes):
                self._receive_bytes(message)
            elif (receiver := self._receivers.get(message.limit)) is not None:
                receiver(message)

    def receive_health(self, health: Health) -> None:
        """Pass on the health of the endpoints of some upstreams."""
        self._health.update(health)
        for upstream, endpoints in health.items():
            receiver = self._health_receivers.get(upstream)
            if receiver is not None:
                receiver(endpoints)

    def lose_supervisor(self) -> None:
        """Go on without a supervisor."""
        self._has_supervisor = False
        for receiver in list(self._receivers.values()):
            receiver(None)
        while self._byte_receivers:
            self._byte_receivers.popitem()[1](None)

    def ask_bytes(self, limit: str, size: int, rate: float, receive: Callable[[int | None], None]) -> int:
        """Have `receive` called with `size` once that many bytes of a rate are granted; return the request's number.

        It is called with None if the supervisor has ended.
        """
        number = next(self._numbers)
        self._byte_receivers[number] = receive
        self.post(AskBytes(limit, number, size, rate))
        if not self._has_supervisor:
            asyncio.get_running_loop().call_soon(self._byte_receivers.pop(number), None)
        return number

    def withdraw_bytes(self, limit: str, number: int) -> None:
        """Need the bytes of a request no more."""
        if self._byte_receivers.pop(number, None) is not None:
            self.post(WithdrawBytes(limit, number))

    def subscribe(self, limit: str, receive: Callable[[ToWorker | None], None]) -> None:
        """Have `receive` called with the messages about a limit, and with None if the supervisor has ended."""
        self._receivers[limit] = receive
        if not self._has_supervisor:
            receive(None)

    def unsubscribe(self, limit: str) -> None:
        """End what `subscribe` began."""
        self._receivers.pop(limit, None)

    def subscribe_health(self, upstream: str, receive: Callable[[dict[str, EndpointHealth]], None]) -> None:
        """Have `receive` called with the health of an upstream whenever it changes, and now with the last."""
        self._health_receivers[upstream] = receive
        if upstream in self._health:
            receive(self._health[upstream])

    def unsubscribe_health(self, upstream: str) -> None:
        """End what `subscribe_health` began."""
        self._health_receivers.pop(upstream, None)

    def _receive_bytes(self, message: GrantBytes) -> None:
        receive = self._byte_receivers.pop(message.number, None)
        if receive is not None:
            receive(message.size)
        else:
            self.post(GiveBackBytes(message.limit, message.size))

    def _flush(self) -> None:
        messages, self._outbox = self._outbox, []
        if self._has_supervisor:
            self._send(messages)


class Leases(Generic[W]):
    """The leases of one limit that one worker holds, and the exchanges that wait for one. Pure: no I/O, no clock.

    It begins without a limit: `begin` applies one, `end` removes it. Between the two the messages of the supervisor are
    passed to `grant`, `refuse` and `keep`. W is what waits: the owner wakes it when `grant` returns it.
    """

    __slots__ = ("_is_alone", "_keep_count", "_limit", "_numbers", "_post", "held", "used", "waiting")

    def __init__(self, limit: str, post: Callable[[ToSupervisor], None]) -> None:
        self._limit = limit
        self._post = post
        self._numbers = itertools.count()
        self._keep_count = 0
        self._is_alone = False
        #: Leases that exchanges use.
        self.used = 0
        #: All leases, used or not; infinite without a limit.
        self.held: float = math.inf
        #: Exchanges that wait, by the number of their Ask, in order of arrival.
        self.waiting: dict[int, W] = {}

    @property
    def is_limited(self) -> bool:
        """Whether a limit applies."""
        return self.held != math.inf

    def begin(self) -> None:
        """Apply the limit from now on; exchanges that run hold a lease each."""
        self.held, self._keep_count = self.used, 0
        self._post(Join(self._limit, self.used))

    def end(self) -> list[W]:
        """Apply no limit from now on; return what waited, which has its slots now."""
        self._post(Leave(self._limit))
        admitted = list(self.waiting.values())
        self.waiting.clear()
        self.held = math.inf
        self.used += len(admitted)
        return admitted

    def take(self) -> bool:
        """Use a lease; return False if there is none, so that the exchange has to wait."""
        if self.used >= self.held or self.waiting:
            return False
        self.used += 1
        return True

    def wait(self, waiter: W) -> int:
        """Ask for a slot; return the number of the request."""
        number = next(self._numbers)
        self.waiting[number] = waiter
        self._post(Ask(self._limit, number))
        return number

    def withdraw(self, number: int) -> None:
        """Ask no longer for a slot. Does nothing after it was granted or refused."""
        if self.waiting.pop(number, None) is not None:
            self._post(Withdraw(self._limit, number))

    def release(self) -> W | None:
        """End the use of a lease. Return what has it next, if that is decided here."""
        self.used -= 1
        return self._settle() if self.held != math.inf else None

    def grant(self, number: int) -> W | None:
        """Receive a lease; return what has waited for it."""
        if not self.is_limited:
            return None
        self.held += 1
        waiter = self.waiting.pop(number, None)
        if waiter is None:
            # It was withdrawn meanwhile.
            return self._settle()
        self.used += 1
        return waiter

    def refuse(self, number: int) -> W | None:
        """Return what gets no place in the queue, None if it has left it."""
        return self.waiting.pop(number, None)

    def keep(self, count: int) -> None:
        """Keep no more than `count` leases unused."""
        if self.is_limited:
            self._keep_count = count
            excess = int(max(0, self.held - self.used - count))
            self.held -= excess
            self._post(Kept(self._limit, excess))

    def lose_supervisor(self) -> W | None:
        """Go on without a supervisor: what this worker holds is its own. Return what gets an unused lease."""
        self._is_alone = True
        return self._settle() if self.is_limited else None

    def _settle(self) -> W | None:
        """Pass a lease on that is not used, or keep it, or give it back."""
        if self.used >= self.held:
            return None
        if self._is_alone:
            if not self.waiting:
                return None
            self.used += 1
            return self.waiting.pop(next(iter(self.waiting)))
        if self.held - self.used > self._keep_count:
            self.held -= 1
            self._post(GiveBack(self._limit, 1))
        return None

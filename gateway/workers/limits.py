"""The limits of the gateway over all workers, kept by the supervisor: `gateway.sharing` has the messages.

    limit                                  where it is kept
    -------------------------------------  ------------------------------------------------------------------
    upstreams.X.max_in_flight, its queue   a Ledger, see `leases`
    throttle of a route or a client        a Bucket: a worker takes bytes for 50 ms at once
    health of endpoints                    an UpstreamState: checked here, once each
    ejection                               the same: workers report failures, and the first success after one

Two limits need no supervisor. `max_connections`: the connections of each worker are in memory that all share, see
`load`. `retries.budget`: each worker has its part of it, see `gateway.upstream.retries`.

A worker whose process has ended has no connection open any more: its leases are free from then on, not from the end of
its channel, so that the upstream never sees more exchanges than it may.

A limit that a config does not have any more is kept as it was until no worker applies it: exchanges that began with the
config before still take its slots. Not counted when a limit is new in a config: exchanges of a worker that drains
already.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final, Generic, TypeVar

from gateway.config import Config, Upstream
from gateway.filters.throttle import Bucket
from gateway.observe.stats import Stats, UpstreamStats
from gateway.sharing import (
    Ask,
    AskBytes,
    Failed,
    GiveBack,
    GiveBackBytes,
    GrantBytes,
    Health,
    Join,
    Kept,
    Leave,
    Succeeded,
    ToSupervisor,
    ToWorker,
    Withdraw,
    WithdrawBytes,
)
from gateway.threads import Threads
from gateway.upstream import Resolver, UpstreamState
from gateway.upstream.health import watch_endpoints
from gateway.upstream.resolver import MAX_LOOKUPS
from gateway.workers.leases import Ledger

#: Buckets; beyond this, those that need not be waited for are dropped.
_MAX_BUCKETS: Final = 10_000
_PREFIX: Final = "upstreams."
_SUFFIX: Final = ".max_in_flight"
#: A worker.
K = TypeVar("K")


class GatewayLimits(Generic[K]):
    """All limits over all workers. Needs a running loop; close it after use.

    `send` sends a worker what it may take, those messages of one iteration of the loop at once; `send_health` sends it
    the health of the endpoints of some upstreams. In `stats` the numbers are kept that are the gateway's.
    """

    def __init__(
        self,
        stats: Stats,
        send: Callable[[K, list[ToWorker]], None],
        send_health: Callable[[K, Health], None],
    ) -> None:
        self._stats = stats
        self._send = send
        self._send_health = send_health
        self._workers: set[K] = set()
        self._outbox: dict[K, list[ToWorker]] = {}
        self._ledgers: dict[str, Ledger[K]] = {}
        #: The limits that the config in force has.
        self._limits: set[str] = set()
        self._rates = _Rates[K](self._post)
        self._endpoints = _Endpoints(stats, self._broadcast)
        self._changed: set[str] = set()
        self._loop = asyncio.get_running_loop()

    def add(self, worker: K) -> None:
        """Add a worker, before anything else is sent to it."""
        self._workers.add(worker)
        self._send_health(worker, self._endpoints.health())

    def remove(self, worker: K) -> None:
        """Take back all that a worker has whose process has ended."""
        self._workers.discard(worker)
        self._outbox.pop(worker, None)
        for limit, ledger in list(self._ledgers.items()):
            ledger.leave(worker)
            self._update(limit, ledger)
        self._rates.remove(worker)

    def configure(self, config: Config, workers: Collection[K] = ()) -> None:
        """Apply a config, just before it is sent to `workers`: they apply it as soon as they receive that."""
        self._stats.add(((route.name, route.upstream) for route in config.routes), config.upstreams)
        self._limits.clear()
        for name, upstream in config.upstreams.items():
            if math.isfinite(upstream.max_in_flight):
                limit = f"{_PREFIX}{name}{_SUFFIX}"
                self._limits.add(limit)
                ledger = self._ledgers.get(limit)
                if ledger is None:
                    ledger = self._ledgers[limit] = Ledger(limit, self._post)
                ledger.configure(int(upstream.max_in_flight), upstream.max_queued, self._workers & set(workers))
                self._update(limit, ledger)
            self._stats.upstreams[name].slots = upstream.max_in_flight
        self._endpoints.configure(config)

    def unavailable_upstreams(self) -> list[str]:
        """Return the names of upstreams without an endpoint that is healthy."""
        return self._endpoints.unavailable()

    def receive(self, worker: K, messages: Iterable[ToSupervisor]) -> None:
        """Take in messages of a worker."""
        if worker not in self._workers:
            return
        for message in messages:
            match message:
                case AskBytes() | WithdrawBytes() | GiveBackBytes():
                    self._rates.receive(worker, message)
                case Failed() | Succeeded():
                    self._endpoints.receive(message)
                case _:
                    self._receive(worker, message)

    async def close(self) -> None:
        """Stop checking health, and end what waits."""
        await self._rates.close()
        await self._endpoints.close()

    def _receive(self, worker: K, message: Join | Leave | Ask | Withdraw | GiveBack | Kept) -> None:
        ledger = self._ledgers.get(message.limit)
        if ledger is None:
            return
        match message:
            case Ask(_, number):
                ledger.ask(worker, number)
            case GiveBack(_, count):
                ledger.give_back(worker, count)
            case Withdraw(_, number):
                ledger.withdraw(worker, number)
            case Kept(_, count):
                ledger.confirm(worker, count)
            case Join(_, held):
                ledger.join(worker, held)
            case Leave():
                ledger.leave(worker)
        self._update(message.limit, ledger)

    def _update(self, limit: str, ledger: Ledger[K]) -> None:
        """Count what waits, and drop the ledger of a limit that is no more."""
        stats = self._stats.upstreams.get(limit.removeprefix(_PREFIX).removesuffix(_SUFFIX))
        if stats is not None:
            stats.queue_length = ledger.queue_length
        if ledger.is_unused and limit not in self._limits:
            del self._ledgers[limit]

    def _post(self, worker: K, message: ToWorker) -> None:
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.setdefault(worker, []).append(message)

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for worker, messages in outbox.items():
            self._send(worker, messages)

    def _broadcast(self, upstream: str) -> None:
        """Send the health of an upstream to all workers, that of one iteration of the loop at once."""
        if not self._changed:
            self._loop.call_soon(self._send_changed)
        self._changed.add(upstream)

    def _send_changed(self) -> None:
        health = self._endpoints.health(self._changed)
        self._changed.clear()
        for worker in self._workers:
            self._send_health(worker, health)


class _Rates(Generic[K]):
    """The buckets of all throttles, and what workers wait for."""

    def __init__(self, post: Callable[[K, ToWorker], None]) -> None:
        self._post = post
        #: By name and rate: exchanges that began with another config have the rate of that.
        self._buckets: dict[tuple[str, float], Bucket] = {}
        self._tasks: dict[tuple[K, int], asyncio.Task[None]] = {}
        #: Of the last grant of each limit, to take bytes back.
        self._granted: dict[str, Bucket] = {}

    def receive(self, worker: K, message: AskBytes | WithdrawBytes | GiveBackBytes) -> None:
        match message:
            case AskBytes():
                key = (worker, message.number)
                task = asyncio.create_task(self._grant(worker, message), name=f"rate of {message.limit}")
                self._tasks[key] = task
                task.add_done_callback(lambda _: self._tasks.pop(key, None))
            case WithdrawBytes(_, number):
                if (waiting := self._tasks.get((worker, number))) is not None:
                    waiting.cancel()
            case GiveBackBytes(limit, size):
                if (bucket := self._granted.get(limit)) is not None:
                    bucket.give_back(size)

    def remove(self, worker: K) -> None:
        for key, task in list(self._tasks.items()):
            if key[0] is worker:
                task.cancel()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _grant(self, worker: K, message: AskBytes) -> None:
        bucket = self._bucket(message.limit, message.rate)
        await bucket.take(message.size)
        self._granted[message.limit] = bucket
        self._post(worker, GrantBytes(message.limit, message.number, message.size))

    def _bucket(self, limit: str, rate: float) -> Bucket:
        bucket = self._buckets.get((limit, rate))
        if bucket is None:
            if len(self._buckets) >= _MAX_BUCKETS:
                now = time.monotonic()
                self._buckets = {key: each for key, each in self._buckets.items() if not each.is_idle(now)}
                self._granted = {key[0]: each for key, each in self._buckets.items()}
            bucket = self._buckets[limit, rate] = Bucket(rate)
        return bucket


class _Endpoints:
    """The health of all endpoints: what decides it, and the tasks that check it."""

    def __init__(self, stats: Stats, on_change: Callable[[str], None]) -> None:
        self._stats = stats
        self._on_change = on_change
        self._names = Threads("name", MAX_LOOKUPS)
        self._resolver = Resolver(self._names)
        self._configs: dict[str, Upstream] = {}
        self._states: dict[str, UpstreamState] = {}
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._ended: set[asyncio.Task[Any]] = set()

    def health(self, upstreams: Iterable[str] | None = None) -> Health:
        names = self._states if upstreams is None else upstreams
        return {name: self._states[name].health() for name in names if name in self._states}

    def unavailable(self) -> list[str]:
        return [name for name, state in self._states.items() if not state.is_available]

    def configure(self, config: Config) -> None:
        for name in self._states.keys() - config.upstreams.keys():
            self._states.pop(name).close()
            self._stop_checks(name)
        before, self._configs = self._configs, dict(config.upstreams)
        for name, upstream in config.upstreams.items():
            if before.get(name) != upstream:
                self._configure(name, upstream, self._stats.upstreams[name])

    def _configure(self, name: str, config: Upstream, stats: UpstreamStats) -> None:
        state = self._states.get(name)
        if state is None:
            state = self._states[name] = UpstreamState(stats)
            state.on_health = lambda: self._on_change(name)
        states = state.endpoints(config.endpoints)
        state.configure(config, states)
        self._stop_checks(name)
        if config.health is not None:
            work = watch_endpoints(state, states, config.health, self._resolver)
            self._tasks[name] = asyncio.create_task(work, name=f"health of {name}")
        self._on_change(name)

    def receive(self, message: Failed | Succeeded) -> None:
        state = self._states.get(message.limit)
        endpoint = state.find(message.endpoint) if state is not None else None
        if state is None or endpoint is None:
            return
        if isinstance(message, Failed):
            state.record_failure(endpoint, message.reason)
        else:
            state.record_success(endpoint)

    async def close(self) -> None:
        for name in list(self._tasks):
            self._stop_checks(name)
        await asyncio.gather(*self._ended, return_exceptions=True)
        for state in self._states.values():
            state.close()
        self._names.shutdown(wait=False, cancel_futures=True)

    def _stop_checks(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            self._ended.add(task)
            task.add_done_callback(self._ended.discard)

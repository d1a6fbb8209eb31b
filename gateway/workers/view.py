"""What the ops port shows and does for all workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

from gateway.config.model import Ops
from gateway.observe.live import FailureRow, TransferRow, worker_of
from gateway.observe.processes import ProcessGroup
from gateway.observe.prometheus import Exposition
from gateway.observe.stats import Stats
from gateway.ops import ConfigInForce, Readiness
from gateway.workers.channel import Kind
from gateway.workers.counts import WorkerCounts
from gateway.workers.failures import SentFailures
from gateway.workers.live import LiveQueries, Question
from gateway.workers.pool import WorkerPool
from gateway.workers.process import State, WorkerProcess

_T = TypeVar("_T")


class WorkersView:
    """An OpsView. Made before the workers start; `close` it after their end.

    `stats` are the supervisor's own. `drain` begins to drain, unless that was done before, and returns the task that
    does it.
    """

    def __init__(
        self, stats: Stats, pool: WorkerPool, template_pid: int, drain: Callable[[], asyncio.Task[None]]
    ) -> None:
        self._stats = stats
        self._pool = pool
        self._template_pid = template_pid
        self._drain = drain
        self._counts = WorkerCounts(stats)
        self._live = LiveQueries()
        self._failures = SentFailures()
        self._processes = ProcessGroup()
        self._exposition = Exposition()
        #: Whether a worker has accepted connections.
        self._has_started = False
        #: Set when the drain begins.
        self.is_draining = False
        pool.handlers[Kind.SNAPSHOT] = self._counts.receive
        pool.on_ready.append(self._record_start)
        pool.on_end.append(self._counts.retire)
        pool.handlers[Kind.REPLY] = self._live.receive
        pool.on_end.append(self._live.forget)
        pool.handlers[Kind.FAILURES] = self._failures.receive
        pool.on_end.append(self._failures.retire)

    def close(self) -> None:
        """Stop the thread of the counts."""
        self._counts.close()

    def keep_series(self) -> None:
        """After a change of the config: begin the series of what is new; those of what was removed end."""
        config = self._pool.config
        routes = [(route.name, route.upstream) for route in config.routes]
        self._stats.add(routes, config.upstreams)
        self._stats.keep(routes, config.upstreams)

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the text of all metrics, and its Content-Type."""
        pids = [os.getpid(), self._template_pid, *(worker.pid for worker in self._pool.workers)]
        # Read while the workers count: each process takes most of a millisecond.
        reading = self._counts.run(lambda: list(self._processes.read_all(pids, parent=self._template_pid)))
        self._stats.stale_workers = await self._counts.ask(self._pool.serving)
        processes = await asyncio.wrap_future(reading)
        return await self._read(lambda stats: self._exposition.render(stats, accept, processes, are_routes_fixed=True))

    def readiness(self) -> Readiness:
        """Return whether the gateway accepts traffic: a worker does, and there is a route to serve."""
        reasons = []
        if not self._has_started:
            reasons.append("starting")
        elif not any(worker.state is State.READY for worker in self._pool.workers):
            reasons.append("no worker accepts connections")
        if self.is_draining:
            reasons.append("draining")
        known = self._stats.upstreams.items()
        unavailable = [
            name
            for name, upstream in known
            if upstream.endpoints and not any(endpoint.is_up for endpoint in upstream.endpoints.values())
        ]
        can_serve = any(route.upstream not in unavailable for route in self._pool.config.routes)
        return Readiness(
            is_ready=not reasons and can_serve,
            reasons=(*reasons, *(f"upstream {name}: no healthy endpoint" for name in unavailable)),
        )

    def settings(self) -> Ops:
        """Return the settings in force."""
        return self._pool.config.ops

    async def drain(self) -> int:
        """Drain all workers, and return how many exchanges are left."""
        # A client that leaves must not cancel the drain.
        await asyncio.wait({self._drain()})
        return sum(worker.exchanges_left for worker in self._pool.workers)

    async def stats(self) -> Stats:
        """Return the statistics, as the workers sent them within the last second."""
        return await self._read(lambda stats: stats)

    async def transfers(self) -> list[TransferRow]:
        """Return the transfers under way."""
        return await self._live.ask(self._pool.serving, Question.TRANSFERS)

    async def failures(self) -> list[FailureRow]:
        """Return the last exchanges that failed, also those of workers that have ended."""
        return self._failures.rows(await self._live.ask(self._pool.serving, Question.FAILURES))

    async def cancel(self, transfer_id: str, operator: str) -> bool:
        """Cancel a transfer for an operator; return whether it is under way."""
        workers = [worker for worker in self._pool.serving if worker.pid == worker_of(transfer_id)]
        return bool(await self._live.ask(workers, Question.CANCEL, transfer_id, operator))

    def config(self) -> ConfigInForce:
        """Return the config in force."""
        generation = 1 + self._stats.reloads["success"]
        return ConfigInForce(self._pool.config, generation, self._stats.configured_at)

    async def _read(self, use: Callable[[Stats], _T]) -> _T:
        self._stats.workers, self._stats.worker_restarts = len(self._pool.serving), self._pool.restart_count
        return await self._counts.read(use)

    def _record_start(self, _worker: WorkerProcess) -> None:
        self._has_started = True

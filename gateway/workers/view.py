"""What the ops port shows and does for all workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from gateway.config import Config
from gateway.config.model import Ops
from gateway.observe.live import FailureRow, TransferRow
from gateway.observe.prometheus import render
from gateway.observe.stats import Stats
from gateway.ops import ConfigInForce, Readiness
from gateway.workers.process import State, WorkerProcess


class WorkersView:
    """An OpsView. `drain` begins to drain, unless that was done before, and returns the task that does it."""

    def __init__(
        self,
        stats: Stats,
        config: Callable[[], Config],
        workers: Collection[WorkerProcess],
        drain: Callable[[], asyncio.Task[None]],
    ) -> None:
        self._stats = stats
        self._config = config
        self._workers = workers
        self._drain = drain
        #: Set when every worker accepts connections for the first time, and when the drain begins.
        self.has_started = False
        self.is_draining = False

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the text of all metrics, and its Content-Type."""
        return render(self._stats, accept)

    def readiness(self) -> Readiness:
        """Return whether a worker accepts connections."""
        reasons = []
        if not self.has_started:
            reasons.append("starting")
        elif not any(worker.state is State.READY for worker in self._workers):
            reasons.append("no worker accepts connections")
        if self.is_draining:
            reasons.append("draining")
        return Readiness(is_ready=not reasons, reasons=tuple(reasons))

    def settings(self) -> Ops:
        """Return the settings in force."""
        return self._config().ops

    async def drain(self) -> int:
        """Drain all workers, and return how many exchanges are left."""
        # A client that leaves must not cancel the drain.
        await asyncio.wait({self._drain()})
        return sum(worker.exchanges_left for worker in self._workers)

    async def stats(self) -> Stats:
        """Return the statistics."""
        return self._stats

    async def transfers(self) -> list[TransferRow]:
        """Return the transfers under way."""
        return []

    async def failures(self) -> list[FailureRow]:
        """Return the last exchanges that failed."""
        return []

    async def cancel(self, transfer_id: str, operator: str) -> bool:
        """Cancel a transfer for an operator; return whether it is under way."""
        return False

    def config(self) -> ConfigInForce:
        """Return the config in force."""
        generation = 1 + self._stats.reloads["success"]
        return ConfigInForce(self._config(), generation, self._stats.configured_at)

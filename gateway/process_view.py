"""What the ops port shows and does for a gateway that is one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from gateway.config.model import Ops
from gateway.handler import ExchangeHandler
from gateway.observe.live import FailureRow, TransferRow
from gateway.observe.processes import ProcessGroup
from gateway.observe.prometheus import Exposition
from gateway.observe.stats import Stats
from gateway.ops import ConfigInForce, Readiness


class ProcessView:
    """An OpsView. `drain` begins to drain, unless that was done before, and returns the task that does it."""

    def __init__(
        self,
        handler: ExchangeHandler,
        stats: Stats,
        *,
        refresh: Callable[[], None],
        drain: Callable[[], asyncio.Task[None]],
    ) -> None:
        """`refresh` brings those numbers up to date that are not counted as it happens."""
        self._handler = handler
        self._stats = stats
        self._refresh = refresh
        self._drain = drain
        #: Set when both ports are open.
        self.has_started = False
        # Rendering many series takes tens of milliseconds: a thread keeps the event loop free for transfers.
        self._processes = ProcessGroup()
        self._exposition = Exposition()
        self._renderer = ThreadPoolExecutor(1, "metrics")

    def close(self) -> None:
        """Stop the rendering thread; waits for a scrape in progress."""
        self._renderer.shutdown(wait=True)

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the text of all metrics, and its Content-Type."""
        self._refresh()
        loop, stats, processes = asyncio.get_running_loop(), self._stats, self._processes
        return await loop.run_in_executor(
            self._renderer, lambda: self._exposition.render(stats, accept, processes.read())
        )

    def readiness(self) -> Readiness:
        """Return whether the gateway accepts traffic: it has started, does not drain, and has a route to serve."""
        stopped = []
        if not self.has_started:
            stopped.append("starting")
        if self._handler.is_draining:
            stopped.append("draining")
        runtime = self._handler.runtime
        unavailable = [f"upstream {name}: no healthy endpoint" for name in runtime.unavailable_upstreams()]
        return Readiness(is_ready=not stopped and runtime.can_serve(), reasons=(*stopped, *unavailable))

    def settings(self) -> Ops:
        """Return the settings in force."""
        return self._handler.runtime.config.ops

    async def drain(self) -> int:
        """Drain, and return how many exchanges are left."""
        # A client that leaves must not cancel the drain.
        await asyncio.wait({self._drain()})
        return self._handler.exchange_count

    async def stats(self) -> Stats:
        """Return the statistics, the waits under way included."""
        self._refresh()
        return self._stats

    async def transfers(self) -> list[TransferRow]:
        """Return the transfers under way."""
        return await self._handler.live.rows()

    async def failures(self) -> list[FailureRow]:
        """Return the last exchanges that failed."""
        return self._handler.failures.rows()

    async def cancel(self, transfer_id: str, operator: str) -> bool:
        """Cancel a transfer for an operator; return whether it is under way."""
        return self._handler.cancel(transfer_id, operator)

    def config(self) -> ConfigInForce:
        """Return the config in force."""
        generation = 1 + self._stats.reloads["success"]
        return ConfigInForce(self._handler.runtime.config, generation, self._stats.configured_at)

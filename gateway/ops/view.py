"""What the ops port shows and does, whether the gateway is one process or several.

`OpsView` is all that the ops port uses of the gateway. `process_view.ProcessView` is that of a gateway that is one
process; with several, the supervisor has one for all workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gateway.config import Config
from gateway.config.model import Ops
from gateway.observe.live import FailureRow, TransferRow
from gateway.observe.stats import Stats


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the gateway accepts traffic, and every reason why it does not, or not all of it; one line each."""

    is_ready: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConfigInForce:
    """A config, with the number of those that were in force before it plus 1, and the Unix time of its load."""

    config: Config
    generation: int
    loaded_at: float


class OpsView(Protocol):
    """The gateway as the ops port sees it."""

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the text of all metrics, and its Content-Type: OpenMetrics if `accept` lists it."""
        ...

    def readiness(self) -> Readiness:
        """Return whether the gateway accepts traffic, and why not."""
        ...

    def settings(self) -> Ops:
        """Return the settings in force."""
        ...

    async def drain(self) -> int:
        """Drain once, however often it is called; return how many exchanges are left.

        Cancelling the call does not cancel the drain.
        """
        ...

    async def stats(self) -> Stats:
        """Return the statistics of all processes, the waits under way included."""
        ...

    async def transfers(self) -> list[TransferRow]:
        """Return the transfers under way in all processes; made in slices."""
        ...

    async def failures(self) -> list[FailureRow]:
        """Return the last exchanges of all processes that failed."""
        ...

    async def cancel(self, transfer_id: str, operator: str) -> bool:
        """Cancel a transfer for an operator at this address; return whether it is under way in any process."""
        ...

    def config(self) -> ConfigInForce:
        """Return the config in force."""
        ...

"""What the ops port shows and does, whether the gateway is one process or several.

`OpsView` is the only thing the ops port knows of the gateway. `process_view.ProcessView` is that of a gateway that is
one process; with several, the supervisor's speaks for all workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gateway.config.model import Ops


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the gateway accepts traffic, and every reason why it does not, or not all of it; one line each."""

    is_ready: bool
    reasons: tuple[str, ...]


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

"""What every action of a route can do."""

from __future__ import annotations

from typing import Protocol

from gateway.downstream import Exchange
from gateway.http.routing import RouteMatch


class Action(Protocol):
    """The action of one route: called once for each of its exchanges, closed when its config is no longer used."""

    async def __call__(self, exchange: Exchange, matched: RouteMatch, /) -> None:
        """Run one exchange to its end. Raises Fault; cancelling cuts what was begun on both sides."""
        ...

    async def close(self) -> None:
        """Close connections of its own and cut work that outlives exchanges. No exchange may be under way."""
        ...

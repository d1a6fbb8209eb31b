"""What of an upstream outlives a reload: its slots and queue, the state of its endpoints, its counts.

There is one state per name of an upstream, used by every runtime whose config has that name, until the last exchange of
the last of them has ended. So a reload that changes one key makes no second set of slots beside the one in use.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from gateway.config import Upstream
from gateway.config.values import Endpoint
from gateway.observe.stats import UpstreamStats
from gateway.upstream.balancing import EndpointState
from gateway.upstream.capacity import CapacityLimiter
from gateway.upstream.retries import RetryBudget

_log = logging.getLogger("gateway.upstream")


class UpstreamState:
    """The state of one upstream."""

    def __init__(self, stats: UpstreamStats) -> None:
        self.stats = stats
        self.capacity = CapacityLimiter(stats)
        self.budget = RetryBudget()
        self._endpoints: dict[Endpoint, EndpointState] = {}

    def endpoints(self, endpoints: Iterable[Endpoint]) -> list[EndpointState]:
        """Return the states of endpoints, new ones for those that are not in use; one that is repeated counts once."""
        return [self._endpoints.get(endpoint) or EndpointState(endpoint) for endpoint in dict.fromkeys(endpoints)]

    def configure(self, config: Upstream, states: Iterable[EndpointState]) -> None:
        """Apply a config that is in force from now on; `states` are those of its endpoints."""
        self.capacity.configure(
            slots=config.max_in_flight, max_queued=config.max_queued, queue_seconds=config.queue_timeout
        )
        self.budget.share = config.retries.budget
        self._endpoints = {state.endpoint: state for state in states}
        if config.health is None:
            # Nothing would bring it up again.
            for state in self._endpoints.values():
                state.is_up = True
        self.stats.endpoints_up = {str(endpoint): state.is_up for endpoint, state in self._endpoints.items()}

    def mark_up(self, state: EndpointState, reason: str) -> None:
        """Record that the health checks of an endpoint pass again, and log it."""
        self._set_up(state, is_up=True)
        self._log(logging.INFO, state, "endpoint_up", "is up again", reason)

    def mark_down(self, state: EndpointState, reason: str) -> None:
        """Record that the health checks of an endpoint fail, and log it."""
        self._set_up(state, is_up=False)
        self._log(logging.WARNING, state, "endpoint_down", "is down", reason)

    def _set_up(self, state: EndpointState, *, is_up: bool) -> None:
        state.is_up = is_up
        self.stats.endpoints_up[str(state.endpoint)] = is_up

    def _log(self, level: int, state: EndpointState, event: str, change: str, reason: str) -> None:
        upstream, endpoint = self.stats.upstream, str(state.endpoint)
        keys = {"event": event, "upstream": upstream, "endpoint": endpoint, "reason": reason}
        _log.log(level, "endpoint %s of upstream %s %s: %s", endpoint, upstream, change, reason, extra={"keys": keys})

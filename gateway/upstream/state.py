"""What of an upstream outlives a reload: its slots and queue, the state of its endpoints, its counts.

There is one state per name of an upstream, used by every runtime whose config has that name, until the last exchange of
the last of them has ended. So a reload that changes one key makes no second set of slots beside the one in use.

With several workers there is a state in each of them, and one in the supervisor, which decides whether endpoints are
healthy: it checks them, and the workers report to it which requests fail. They apply what it decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from gateway.config import Upstream
from gateway.config.upstream import Ejection
from gateway.config.values import Endpoint
from gateway.observe.stats import UpstreamStats
from gateway.sharing import EndpointHealth, Failed, SharedLimits, Succeeded
from gateway.upstream.balancing import EndpointState
from gateway.upstream.capacity import Capacity, CapacityLimiter
from gateway.upstream.ejection import EjectionRecord, may_eject
from gateway.upstream.leased import LeasedLimiter
from gateway.upstream.retries import RetryBudget

_log = logging.getLogger("gateway.upstream")


class UpstreamState:
    """The state of one upstream. `limits` are those that a worker shares with others."""

    def __init__(self, stats: UpstreamStats, limits: SharedLimits | None = None) -> None:
        self.stats = stats
        self.capacity: Capacity = CapacityLimiter(stats) if limits is None else LeasedLimiter(stats, limits)
        self.budget = RetryBudget()
        #: Called when the health of an endpoint changed, or whether its last request failed.
        self.on_health: Callable[[], None] = _ignore
        self._limits = limits
        self._ejection: Ejection | None = None
        self._endpoints: dict[Endpoint, EndpointState] = {}
        self._ejections: dict[Endpoint, EjectionRecord] = {}
        #: What ends the ejection of each endpoint that is ejected.
        self._readmissions: dict[Endpoint, asyncio.TimerHandle] = {}

    def close(self) -> None:
        """End what is under way; nothing uses the upstream any more."""
        for timer in self._readmissions.values():
            timer.cancel()
        self.capacity.close()
        if self._limits is not None:
            self._limits.unsubscribe_health(self.stats.upstream)

    def endpoints(self, endpoints: Iterable[Endpoint]) -> list[EndpointState]:
        """Return the states of endpoints, new ones for those that are not in use; one that is repeated counts once."""
        return [self._endpoints.get(endpoint) or EndpointState(endpoint) for endpoint in dict.fromkeys(endpoints)]

    def configure(self, config: Upstream, states: Iterable[EndpointState]) -> None:
        """Apply a config that is in force from now on; `states` are those of its endpoints."""
        self.capacity.configure(
            slots=config.max_in_flight, max_queued=config.max_queued, queue_seconds=config.queue_timeout
        )
        self.budget.configure(config.retries.budget, 1 if self._limits is None else self._limits.worker_count)
        self._endpoints = {state.endpoint: state for state in states}
        self._ejections = {endpoint: self._ejections.get(endpoint) or EjectionRecord() for endpoint in self._endpoints}
        for endpoint in self._readmissions.keys() - self._endpoints.keys():
            self._readmissions.pop(endpoint).cancel()
        self._ejection = config.ejection
        for state in self._endpoints.values() if self._limits is None else ():
            if config.health is None and not state.is_up:
                # Nothing would bring it up again.
                state.is_up = True
                state.stats.reason, state.stats.since = "health checks were switched off", _now()
            if config.ejection is None and state.is_ejected:
                self._readmit(state, "ejection was switched off")
            state.stats.is_up = state.is_healthy
        self.stats.endpoints = {str(endpoint): state.stats for endpoint, state in self._endpoints.items()}
        if self._limits is not None:
            self._limits.subscribe_health(self.stats.upstream, self._apply_health)

    @property
    def is_available(self) -> bool:
        """Whether at least one endpoint is healthy."""
        return any(state.is_healthy for state in self._endpoints.values())

    def health(self) -> dict[str, EndpointHealth]:
        """Return the state of each endpoint, as workers need it."""
        return {
            str(endpoint): EndpointHealth(state.is_up, state.is_ejected, bool(state.failures))
            for endpoint, state in self._endpoints.items()
        }

    def find(self, endpoint: str) -> EndpointState | None:
        """Return the state of an endpoint in use, None if the config in force does not have it."""
        return next((state for each, state in self._endpoints.items() if str(each) == endpoint), None)

    def mark_up(self, state: EndpointState, reason: str) -> None:
        """Record that the health checks of an endpoint pass again, and log it; it is not ejected any more."""
        state.is_up = True
        self._report(logging.INFO, state, "endpoint_up", "is up again", reason)
        if state.is_ejected:
            self._readmit(state, "its health checks pass again")

    def mark_down(self, state: EndpointState, reason: str) -> None:
        """Record that the health checks of an endpoint fail, and log it."""
        state.is_up = False
        self._report(logging.WARNING, state, "endpoint_down", "is down", reason)

    def record_success(self, state: EndpointState) -> None:
        """Record a request that did not fail."""
        if not state.failures or self._ejection is None or not self._is_in_use(state):
            return
        state.failures = 0
        if self._limits is not None:
            self._limits.post(Succeeded(self.stats.upstream, str(state.endpoint)))
        self.on_health()

    def record_failure(self, state: EndpointState, reason: str) -> None:
        """Record a request that failed on an endpoint, and eject it if that was one too many."""
        config = self._ejection
        if config is None or not self._is_in_use(state):
            return
        state.failures += 1
        if self._limits is not None:
            self._limits.post(Failed(self.stats.upstream, str(state.endpoint), reason))
            return
        if state.failures == 1:
            self.on_health()
        if state.failures < config.failures or not may_eject(state, self._endpoints.values(), config):
            return
        loop = asyncio.get_running_loop()
        seconds = self._ejections[state.endpoint].start(config.duration, loop.time())
        state.is_ejected = True
        self._readmissions[state.endpoint] = loop.call_later(seconds, self._readmit, state, f"after {seconds:g} s")
        state.stats.ejections += 1
        state.stats.ejected_until = _now() + seconds
        why = f"{state.failures} requests in a row failed, the last with {reason}"
        self._report(logging.WARNING, state, "endpoint_ejected", f"is ejected for {seconds:g} s", why)

    def _apply_health(self, health: dict[str, EndpointHealth]) -> None:
        """Take over what the supervisor has decided: it also logs it."""
        for endpoint, state in self._endpoints.items():
            decided = health.get(str(endpoint))
            if decided is not None:
                state.is_up, state.is_ejected = decided.is_up, decided.is_ejected
                state.stats.is_up = state.is_healthy
                state.failures = int(decided.has_failed)

    def _is_in_use(self, state: EndpointState) -> bool:
        """Whether the config in force has the endpoint, and this is its state."""
        return self._endpoints.get(state.endpoint) is state

    def _readmit(self, state: EndpointState, reason: str) -> None:
        self._readmissions.pop(state.endpoint).cancel()
        self._ejections[state.endpoint].end(asyncio.get_running_loop().time())
        state.failures = 0
        state.is_ejected = False
        state.stats.ejected_until = 0.0
        self._report(logging.INFO, state, "endpoint_readmitted", "is readmitted", reason)

    def _report(self, level: int, state: EndpointState, event: str, change: str, reason: str) -> None:
        upstream, endpoint = self.stats.upstream, str(state.endpoint)
        state.stats.is_up = state.is_healthy
        if state.is_healthy or event != "endpoint_readmitted":
            # Otherwise it is down for the reason it had before.
            state.stats.reason, state.stats.since = reason, _now()
        keys = {"event": event, "upstream": upstream, "endpoint": endpoint, "reason": reason}
        _log.log(level, "endpoint %s of upstream %s %s: %s", endpoint, upstream, change, reason, extra={"keys": keys})
        self.on_health()


def _now() -> float:
    """Return the Unix time."""
    return time.time()  # noqa: TID251 (the time of day)


def _ignore() -> None:
    pass

"""Passive health: an endpoint whose requests fail one after the other gets none for a while.

As Envoy's outlier detection for consecutive gateway failures: what counts is that the endpoint could not be connected,
gave no response or not all of it, or responded with 502, 503 or 504. A 500 does not: services respond with it to input
they cannot handle, and one client could take every endpoint out of use with it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from gateway.config.upstream import Ejection
from gateway.errors import FaultKind
from gateway.upstream.balancing import EndpointState

#: Faults that count; all others are those of the client, the gateway, or the config.
FAILURES: Final = frozenset(
    {
        FaultKind.DNS_ERROR,
        FaultKind.CONNECT_REFUSED,
        FaultKind.CONNECT_TIMEOUT,
        FaultKind.TLS_ERROR,
        FaultKind.UPSTREAM_CLOSED,
        FaultKind.BAD_RESPONSE,
        FaultKind.RESPONSE_INCOMPLETE,
        FaultKind.RESPONSE_TIMEOUT,
        FaultKind.UPSTREAM_IDLE,
        FaultKind.UPSTREAM_STUCK,
    }
)
#: Responses that count.
FAILURE_STATUSES: Final = frozenset({502, 503, 504})
#: The longest ejection, in times of `duration` (Envoy: 300 s with the same default of 30 s).
_MAX_FACTOR: Final = 10


@dataclass(slots=True)
class EjectionRecord:
    """The ejections of one endpoint."""

    #: By how many times `duration` the last ejection was long, and when it ended.
    _factor: int = 0
    _ended: float = 0.0

    def start(self, duration: float, now: float) -> float:
        """Record an ejection; return its seconds.

        Each is longer than the one before by `duration`, and by one less for each `duration` that lay between.
        """
        quiet = int((now - self._ended) / duration)
        self._factor = min(max(self._factor - quiet, 0) + 1, _MAX_FACTOR)
        return self._factor * duration

    def end(self, now: float) -> None:
        """Record that the ejection has ended."""
        self._ended = now


def may_eject(state: EndpointState, states: Collection[EndpointState], config: Ejection) -> bool:
    """Return whether an endpoint may be ejected: never the last healthy one, and no more than `max_percent` of all.

    One may be ejected also if that is more than `max_percent`.
    """
    if not state.is_healthy or not any(other.is_healthy for other in states if other is not state):
        return False
    ejected_count = sum(other.is_ejected for other in states)
    return ejected_count < max(1, int(len(states) * config.max_percent))

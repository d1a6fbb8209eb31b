"""Which endpoint gets the next request. Pure: the choice depends on the state of the endpoints only.

The policies choose among the healthy endpoints only. Rejected: to take turns over all of them and skip those that are
down (their neighbour gets their share as well), and to draw two of all (a loaded endpoint wins against one that is
down).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from gateway.config import Policy
from gateway.config.values import Endpoint
from gateway.observe.stats import EndpointStats


@dataclass(slots=True, eq=False)
class EndpointState:
    """The state of one endpoint."""

    endpoint: Endpoint
    #: Also its requests in flight.
    stats: EndpointStats = field(default_factory=EndpointStats)
    #: By its health checks.
    is_up: bool = True
    #: By the failures of its requests.
    is_ejected: bool = False
    #: Failed requests in a row.
    failures: int = 0
    #: The number of the choice that took it last, over all endpoints of the upstream: as the first endpoint of a
    #: request, and as a further one.
    first_turn: int = 0
    further_turn: int = 0
    #: The value of a Host header for it, and its name in logs and metrics.
    authority: bytes = field(init=False)
    label: str = field(init=False)

    def __post_init__(self) -> None:
        """Encode what every request has."""
        self.authority = self.endpoint.authority.encode()
        self.label = str(self.endpoint)

    @property
    def is_healthy(self) -> bool:
        """Whether it gets requests while others are healthy."""
        return self.is_up and not self.is_ejected


_first_turn, _further_turn = attrgetter("first_turn"), attrgetter("further_turn")
_load = attrgetter("stats.in_flight", "first_turn")


class Balancer:
    """Chooses the endpoints of one upstream.

    `round_robin` takes the healthy endpoint that was taken longest ago, `least_requests` the one with the fewest
    exchanges in flight, in turn where several have as few. `random_two` draws two and takes the one with fewer
    exchanges. Requests that failed on an endpoint take turns of their own, so that its share goes to all others.
    """

    def __init__(self, policy: Policy, states: Sequence[EndpointState]) -> None:
        self._policy = policy
        self._states = states
        self._turn = max(max(state.first_turn, state.further_turn) for state in states)
        #: The last choice of a first endpoint, and the turn it had before.
        self._last_choice: tuple[EndpointState, int] = (states[0], states[0].first_turn)

    def choose(self, tried: Collection[EndpointState] = ()) -> EndpointState:
        """Return an endpoint for a request that failed on the endpoints `tried`, fewer than there are.

        Endpoints that are down or ejected come last: with every other one tried, trying one is better than a certain
        refusal (Envoy's panic mode).
        """
        states = self._states
        if len(states) == 1:
            return states[0]
        self._turn += 1
        if tried:
            states = [state for state in states if state not in tried]
            chosen = min(_healthy(states), key=_further_turn)
            chosen.further_turn = self._turn
        else:
            chosen = self._choose_first(_healthy(states))
            self._last_choice = (chosen, chosen.first_turn)
            chosen.first_turn = self._turn
        return chosen

    def take_back(self) -> None:
        """Take back the choice of a first endpoint that was made just now: the endpoint has its turn as before."""
        state, turn = self._last_choice
        state.first_turn = turn

    def _choose_first(self, states: Sequence[EndpointState]) -> EndpointState:
        if self._policy == "least_requests":
            return min(states, key=_load)
        if self._policy == "random_two" and len(states) > 1:
            return min(random.sample(states, 2), key=_load)
        return min(states, key=_first_turn)


def _healthy(states: Sequence[EndpointState]) -> Sequence[EndpointState]:
    return [state for state in states if state.is_healthy] or states

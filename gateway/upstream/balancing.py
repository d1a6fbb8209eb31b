"""Which endpoint gets the next request. Pure: the choice depends on the state of the endpoints only."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.config import Policy
from gateway.config.values import Endpoint


@dataclass(slots=True)
class EndpointState:
    """The state of one endpoint."""

    endpoint: Endpoint
    in_flight: int = 0
    is_up: bool = True

    def leave(self) -> None:
        """Count off an exchange that has ended."""
        self.in_flight -= 1


class Balancer:
    """Orders the endpoints of one upstream for each request: one that cannot connect is followed by the next."""

    def __init__(self, policy: Policy, states: Sequence[EndpointState]) -> None:
        self._policy = policy
        self._states = states
        self._turn = 0

    def order(self) -> list[EndpointState]:
        """Return the endpoints to try, those that are up first; those that are down come last.

        With every endpoint down, trying one is better than a certain refusal (Envoy's panic mode).
        """
        states = self._states
        if len(states) == 1:
            return list(states)
        turn = self._turn
        self._turn = (turn + 1) % len(states)
        turned = [*states[turn:], *states[:turn]]
        if self._policy == "least_requests":
            turned.sort(key=lambda state: state.in_flight)
        elif self._policy == "random_two" and len(turned) > 1:
            first, second = random.sample(turned, 2)
            best = first if first.in_flight <= second.in_flight else second
            turned.remove(best)
            turned.insert(0, best)
        return sorted(turned, key=lambda state: not state.is_up)

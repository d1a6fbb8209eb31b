"""The choice of an endpoint, by policy, health and what was tried before."""

from __future__ import annotations

from collections import Counter

import pytest

from gateway.config import Policy
from gateway.config.values import Endpoint
from gateway.upstream.balancing import Balancer, EndpointState


def states(count: int) -> list[EndpointState]:
    return [EndpointState(Endpoint("http", f"h{number}", 80)) for number in range(count)]


def chosen(balancer: Balancer, count: int) -> list[str]:
    return [balancer.choose().endpoint.host for _ in range(count)]


def test_round_robin_takes_turns() -> None:
    assert chosen(Balancer("round_robin", states(3)), 7) == ["h0", "h1", "h2", "h0", "h1", "h2", "h0"]


@pytest.mark.parametrize("policy", ["round_robin", "least_requests"])
def test_share_of_an_endpoint_that_is_down_goes_to_all_others(policy: Policy) -> None:
    """Its neighbour in the list got it alone: half of all requests with one of four endpoints down."""
    endpoints = states(4)
    endpoints[1].is_up = False
    assert Counter(chosen(Balancer(policy, endpoints), 300)) == {"h0": 100, "h2": 100, "h3": 100}


@pytest.mark.parametrize("policy", ["round_robin", "least_requests"])
def test_share_of_an_endpoint_that_refuses_connections_goes_to_all_others(policy: Policy) -> None:
    endpoints = states(4)
    balancer = Balancer(policy, endpoints)
    counts: Counter[str] = Counter()
    for _ in range(300):
        state = balancer.choose()
        if state is endpoints[1]:
            state = balancer.choose([state])
        counts[state.endpoint.host] += 1
    assert counts == {"h0": 100, "h2": 100, "h3": 100}


def test_least_requests_takes_the_endpoint_with_the_fewest_requests_in_flight() -> None:
    endpoints = states(3)
    endpoints[0].stats.in_flight, endpoints[1].stats.in_flight = 2, 1
    balancer = Balancer("least_requests", endpoints)
    assert chosen(balancer, 2) == ["h2", "h2"]
    endpoints[0].stats.in_flight = 0
    assert chosen(balancer, 4) == ["h0", "h2", "h0", "h2"]


def test_random_two_never_takes_the_busiest_endpoint() -> None:
    endpoints = states(3)
    endpoints[1].stats.in_flight = 9
    assert "h1" not in chosen(Balancer("random_two", endpoints), 200)
    assert chosen(Balancer("random_two", states(1)), 1) == ["h0"]


def test_random_two_compares_two_endpoints_that_are_up() -> None:
    """The loaded endpoint got a third of the requests, whenever it was drawn together with the one that is down."""
    endpoints = states(3)
    endpoints[0].is_up, endpoints[1].stats.in_flight = False, 9
    assert chosen(Balancer("random_two", endpoints), 200) == ["h2"] * 200


def test_random_two_spreads_requests_over_endpoints_with_equal_load() -> None:
    counts = Counter(chosen(Balancer("random_two", states(4)), 4000))
    assert min(counts.values()) > 800


def test_endpoints_that_are_down_are_chosen_only_after_all_others() -> None:
    endpoints = states(3)
    endpoints[0].is_up = False
    balancer = Balancer("round_robin", endpoints)
    first = balancer.choose()
    second = balancer.choose([first])
    assert {first.endpoint.host, second.endpoint.host} == {"h1", "h2"}
    assert balancer.choose([first, second]) is endpoints[0]
    for state in endpoints:
        state.is_up = False
    assert Counter(chosen(balancer, 300)) == {"h0": 100, "h1": 100, "h2": 100}


@pytest.mark.parametrize("policy", ["round_robin", "least_requests"])
def test_choice_that_is_taken_back_is_the_next_choice(policy: Policy) -> None:
    balancer = Balancer(policy, states(3))
    hosts = []
    for _ in range(6):
        chosen = balancer.choose()
        balancer.take_back()
        assert balancer.choose() is chosen
        hosts.append(chosen.endpoint.host)
    assert hosts == ["h0", "h1", "h2", "h0", "h1", "h2"]

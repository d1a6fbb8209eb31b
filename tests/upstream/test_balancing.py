"""The order in which endpoints are tried, by policy and health."""

from __future__ import annotations

from gateway.config.values import Endpoint
from gateway.upstream.balancing import Balancer, EndpointState


def states(count: int) -> list[EndpointState]:
    return [EndpointState(Endpoint("http", f"h{number}", 80)) for number in range(count)]


def hosts(balancer: Balancer) -> list[str]:
    return [state.endpoint.host for state in balancer.order()]


def test_round_robin_starts_with_the_next_endpoint_and_returns_all() -> None:
    balancer = Balancer("round_robin", states(3))
    assert [hosts(balancer) for _ in range(4)] == [
        ["h0", "h1", "h2"],
        ["h1", "h2", "h0"],
        ["h2", "h0", "h1"],
        ["h0", "h1", "h2"],
    ]


def test_least_requests_starts_with_the_fewest_requests_in_flight() -> None:
    endpoints = states(3)
    endpoints[0].in_flight, endpoints[1].in_flight = 2, 1
    assert hosts(Balancer("least_requests", endpoints)) == ["h2", "h1", "h0"]
    endpoints[0].leave()
    endpoints[0].leave()
    assert hosts(Balancer("least_requests", endpoints))[0] == "h0"


def test_random_two_never_starts_with_the_busiest_endpoint() -> None:
    endpoints = states(3)
    endpoints[1].in_flight = 9
    balancer = Balancer("random_two", endpoints)
    assert all(hosts(balancer)[0] != "h1" for _ in range(200))
    assert hosts(Balancer("random_two", states(1))) == ["h0"]


def test_endpoints_that_are_down_are_tried_last() -> None:
    endpoints = states(3)
    endpoints[0].is_up = False
    assert hosts(Balancer("round_robin", endpoints)) == ["h1", "h2", "h0"]

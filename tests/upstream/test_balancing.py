"""The order in which endpoints are tried, by policy and health."""

from __future__ import annotations

from gateway.config.values import Endpoint
from gateway.upstream.balancing import Balancer, EndpointState


def states(count: int) -> list[EndpointState]:
    return [EndpointState(Endpoint("http", f"h{number}", 80)) for number in range(count)]


def hosts(balancer: Balancer) -> list[str]:
    return [state.endpoint.host for state in balancer.order()]


def test_round_robin_starts_with_the_next_endpoint_and_offers_all() -> None:
    balancer = Balancer("round_robin", states(3))
    assert [hosts(balancer) for _ in range(4)] == [
        ["h0", "h1", "h2"],
        ["h1", "h2", "h0"],
        ["h2", "h0", "h1"],
        ["h0", "h1", "h2"],
    ]


def test_least_requests_starts_with_the_fewest_requests_in_flight() -> None:
    known = states(3)
    known[0].in_flight, known[1].in_flight = 2, 1
    assert hosts(Balancer("least_requests", known)) == ["h2", "h1", "h0"]
    known[0].leave()
    known[0].leave()
    assert hosts(Balancer("least_requests", known))[0] == "h0"


def test_random_two_never_starts_with_the_busiest_endpoint() -> None:
    known = states(3)
    known[1].in_flight = 9
    balancer = Balancer("random_two", known)
    assert all(hosts(balancer)[0] != "h1" for _ in range(200))
    assert hosts(Balancer("random_two", states(1))) == ["h0"]


def test_endpoints_that_are_down_are_offered_last() -> None:
    known = states(3)
    known[0].is_up = False
    assert hosts(Balancer("round_robin", known)) == ["h1", "h2", "h0"]

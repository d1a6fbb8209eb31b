"""The ring of the last 15 minutes: its points, its means, its bounds."""

from __future__ import annotations

import json

import pytest

from gateway.errors import Blame
from gateway.observe.history import POINTS, History, estimate_quantile
from gateway.observe.stats import Direction, EndpointStats, Stats
from tests.clock import Clock


def make() -> tuple[Clock, History, Stats]:
    clock = Clock()
    return clock, History(clock, clock), Stats([("r", "up")], ["up"])


def move(stats: Stats, size: int) -> None:
    stats.routes["r"].transfers[Direction.UPLOAD].moved["up"] += size


async def test_each_second_is_a_point_and_the_oldest_is_dropped() -> None:
    clock, history, stats = make()
    for number in range(POINTS + 5):
        clock.now += 1
        move(stats, number)
        history.record(stats)
    document = json.loads(await history.encode())
    (_, route) = document["routes"]
    assert document["points"] == POINTS
    assert route["upload_bytes_per_second"] == list(range(5, POINTS + 5))
    assert document["end"].startswith("1970-01-01T00:16:")


async def test_a_pause_is_filled_with_its_mean() -> None:
    clock, history, stats = make()
    move(stats, 100)
    clock.now += 1
    history.record(stats)
    move(stats, 900)
    clock.now += 3
    history.record(stats)
    (_, route) = json.loads(await history.encode())["routes"]
    assert route["upload_bytes_per_second"] == [100, 300, 300, 300]
    assert history.rates("r", 900)["upload_bytes_per_second"] == 250
    assert history.rates("r", 2)["upload_bytes_per_second"] == 300
    assert history.rates("unknown", 2)["upload_bytes_per_second"] == 0


def test_a_loop_that_was_stuck_for_an_hour_fills_the_ring_once() -> None:
    clock, history, stats = make()
    clock.now += 3600
    move(stats, 3600)
    history.record(stats)
    assert history.rates("r", 900)["upload_bytes_per_second"] == 1


def test_errors_are_those_of_the_gateway_and_upstreams() -> None:
    clock, history, stats = make()
    stats.routes["r"].failures.update({Blame.CLIENT: 5, Blame.GATEWAY: 1, Blame.UPSTREAM: 2})
    stats.routes["r"].requests["GET", 502] = 10
    clock.now += 2
    history.record(stats)
    assert history.rates("r", 900)["errors_per_second"] == 1.5
    assert history.rates("r", 900)["requests_per_second"] == 5


def test_a_route_that_was_removed_has_no_series_and_starts_from_nothing_when_it_comes_back() -> None:
    clock, history, stats = make()
    move(stats, 1000)
    for kept in ({("r", "up")}, set(), {("r", "up")}):
        stats.keep(kept, ["up"])
        stats.add(kept, ["up"])
        clock.now += 1
        history.record(stats)
        assert ("r" in history._routes) is bool(kept)
    assert history.rates("r", 900)["upload_bytes_per_second"] == 0


def test_upstreams_are_judged_by_the_last_minute() -> None:
    clock, history, stats = make()
    up = stats.upstreams["up"]
    up.endpoints["http://a"] = EndpointStats()
    up.endpoints["http://a"].requests.update({200: 100, 500: 3, "connect_refused": 2, "client_left": 7})
    up.response_seconds.observe(0.07)
    for _ in range(2):
        clock.now += 1
        history.record(stats)
    recent = history.recent("up")
    assert recent["errors_per_second"] == 2.5
    assert recent["requests_per_second"] == 56
    assert recent["response_seconds_p50"] == pytest.approx(0.075)
    for _ in range(70):
        clock.now += 1
        history.record(stats)
    recent = history.recent("up")
    assert (recent["requests_per_second"], recent["response_seconds_p99"]) == (0, None)


@pytest.mark.parametrize(
    ("share", "counts", "value"),
    [
        (0.5, [0, 0, 0, 0], None),
        (0.5, [10, 0, 0, 0], 0.5),
        (0.99, [0, 100, 0, 0], 1.99),
        (0.5, [5, 0, 5, 0], 1.0),
        (0.51, [50, 0, 50, 0], 2.04),
        (0.99, [1, 0, 0, 99], 4.0),
    ],
)
def test_quantile_is_that_of_prometheus(share: float, counts: list[int], value: float | None) -> None:
    assert estimate_quantile(share, [1.0, 2.0, 4.0], counts) == (value and pytest.approx(value))

"""The meter of a transfer, with a clock the test moves: every second is charged to one leg, every chunk counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Outcome
from gateway.observe.stats import Direction, Leg, RouteStats
from gateway.observe.waits import Waits
from gateway.transfer import TransferPolicy
from gateway.transfer.meter import Meter
from tests.clock import Clock

POLICY = TransferPolicy(Direction.UPLOAD, Leg.DOWNSTREAM_READ, Leg.UPSTREAM_WRITE)
LEGS = (Leg.DOWNSTREAM_READ, Leg.UPSTREAM_WRITE, Leg.FILTER)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stats() -> RouteStats:
    return RouteStats("r")


def make_meter(stats: RouteStats, clock: Clock) -> Meter:
    return Meter(POLICY, Waits(stats, clock))


def test_seconds_are_charged_to_the_leg_that_was_waited_on(stats: RouteStats, clock: Clock) -> None:
    meter = make_meter(stats, clock)
    meter.start()
    meter.resume()
    clock.now += 1
    meter.wait_on(Leg.UPSTREAM_WRITE)
    clock.now += 2
    with meter.filtering():
        clock.now += 4
    clock.now += 8
    meter.wait_on(Leg.DOWNSTREAM_READ)
    expected = {Leg.DOWNSTREAM_READ: 1.0, Leg.UPSTREAM_WRITE: 10.0, Leg.FILTER: 4.0}
    assert {leg: meter.leg_seconds[leg] for leg in expected} == expected
    assert {leg: stats.waits[leg] for leg in expected} == expected
    assert meter.filter_seconds == 4.0


def test_filters_that_raise_are_charged_and_the_leg_before_is_waited_on_again(stats: RouteStats, clock: Clock) -> None:
    meter = make_meter(stats, clock)
    meter.start()
    meter.resume()
    meter.wait_on(Leg.UPSTREAM_WRITE)

    def fail() -> None:
        with meter.filtering():
            clock.now += 3
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert (meter.filter_seconds, meter.waiting_on) == (3.0, Leg.UPSTREAM_WRITE)


def test_seconds_of_a_paused_transfer_are_charged_to_the_leg_of_its_exchange(stats: RouteStats, clock: Clock) -> None:
    waits = Waits(stats, clock)
    meter = Meter(POLICY, waits)
    meter.start()
    waits.wait_on(Leg.CONNECT)
    clock.now += 5
    meter.resume()
    clock.now += 1
    meter.pause()
    clock.now += 2
    waits.charge(clock.now)
    assert {leg: seconds for leg, seconds in waits.leg_seconds.items() if seconds} == {
        Leg.CONNECT: 7.0,
        Leg.DOWNSTREAM_READ: 1.0,
    }


def test_chunks_are_counted_as_they_are_handed_on_and_their_rate_when_they_have_ended(
    stats: RouteStats, clock: Clock
) -> None:
    meter, upload = make_meter(stats, clock), stats.transfers[Direction.UPLOAD]
    meter.start()
    meter.resume()
    clock.now += 1
    meter.wait_on(Leg.UPSTREAM_WRITE)
    meter.count(1000)
    assert (meter.moved_bytes, upload.bytes_moved, sum(upload.chunk_sizes.counts)) == (1000, 1000, 1)
    assert not sum(upload.chunk_rates.counts)
    clock.now += 1
    meter.wait_on(Leg.DOWNSTREAM_READ)
    # 1000 bytes over 2 seconds, the read included.
    assert (sum(upload.chunk_rates.counts), upload.chunk_rates.total) == (1, 500.0)
    clock.now += 1
    meter.wait_on(Leg.DOWNSTREAM_READ)
    assert sum(upload.chunk_rates.counts) == 1


def test_chunk_under_way_at_the_end_has_its_rate_counted(stats: RouteStats, clock: Clock) -> None:
    meter, upload = make_meter(stats, clock), stats.transfers[Direction.UPLOAD]
    meter.start()
    meter.resume()
    meter.count(10)
    clock.now += 2
    meter.end(Outcome.COMPLETE)
    assert upload.chunk_rates.total == upload.rates.total == 5.0


def test_chunk_that_took_no_time_has_a_rate(stats: RouteStats, clock: Clock) -> None:
    meter, upload = make_meter(stats, clock), stats.transfers[Direction.UPLOAD]
    meter.start()
    meter.resume()
    meter.count(10)
    meter.wait_on(Leg.DOWNSTREAM_READ)
    meter.end(Outcome.COMPLETE)
    assert sum(upload.chunk_rates.counts) == 1
    # The transfer took no time either: it has no rate of its own.
    assert not sum(upload.rates.counts)


def test_transfer_is_in_flight_from_its_start_to_its_first_end(stats: RouteStats, clock: Clock) -> None:
    meter, upload = make_meter(stats, clock), stats.transfers[Direction.UPLOAD]
    assert upload.in_flight == 0
    meter.start()
    meter.resume()
    meter.lane = "direct"
    assert (upload.in_flight, meter.outcome) == (1, None)
    meter.end(Outcome.CLIENT_LEFT)
    meter.end(Outcome.COMPLETE)
    assert (upload.in_flight, meter.outcome) == (0, Outcome.CLIENT_LEFT)
    assert (+Counter(upload.outcomes), +Counter(upload.lanes)) == ({Outcome.CLIENT_LEFT: 1}, {"direct": 1})
    # A body without a byte has a size and no rate.
    assert (sum(upload.sizes.counts), sum(upload.rates.counts)) == (1, 0)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("wait_on"), st.sampled_from(LEGS)),
            st.tuples(st.just("count"), st.integers(1, 2**20)),
            st.tuples(st.just("sleep"), st.integers(0, 1000)),
        )
    )
)
def test_legs_add_up_to_the_time_and_chunks_to_the_bytes(steps: list[tuple[str, Any]]) -> None:
    clock, stats = Clock(), RouteStats("r")
    meter = make_meter(stats, clock)
    meter.start()
    meter.resume()
    for name, value in steps:
        if name == "sleep":
            clock.now += value
        else:
            getattr(meter, name)(value)
    meter.wait_on(meter.waiting_on)
    meter.end(Outcome.COMPLETE)
    assert sum(meter.leg_seconds.values()) == clock.now - 100.0
    assert sum(stats.waits.values()) == clock.now - 100.0
    upload = stats.transfers[Direction.UPLOAD]
    counted = [value for name, value in steps if name == "count"]
    assert meter.moved_bytes == upload.bytes_moved == sum(counted)
    assert sum(upload.chunk_sizes.counts) == len(counted)

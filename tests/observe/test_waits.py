"""The waits of an exchange, with a clock the test moves: every second is charged, and never taken back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.observe.stats import Direction, Leg, RouteStats
from gateway.observe.waits import Wait, Waits
from gateway.transfer import TransferPolicy
from gateway.transfer.meter import Meter
from tests.clock import Clock

UPLOAD = TransferPolicy(Direction.UPLOAD, Leg.DOWNSTREAM_READ, Leg.UPSTREAM_WRITE)
DOWNLOAD = TransferPolicy(Direction.DOWNLOAD, Leg.UPSTREAM_READ, Leg.DOWNSTREAM_WRITE)
TICKS = st.integers(1, 10**9).map(lambda nanoseconds: nanoseconds / 10**9)


def charged(waits: Waits) -> dict[Leg, float]:
    """Return the legs that were waited on, and their seconds."""
    return {leg: seconds for leg, seconds in waits.leg_seconds.items() if seconds}


def test_seconds_before_the_route_is_chosen_are_charged_to_it() -> None:
    clock, no_route, route = Clock(), RouteStats(""), RouteStats("r")
    waits = Waits(no_route, clock)
    clock.now += 3
    waits.route = route
    waits.wait_on(Leg.CONNECT)
    assert (route.waits[Leg.DOWNSTREAM_READ], sum(no_route.waits.values())) == (3.0, 0.0)


def test_what_a_scrape_has_charged_before_the_route_is_chosen_stays_without_a_route() -> None:
    clock, no_route, route = Clock(), RouteStats(""), RouteStats("r")
    waits = Waits(no_route, clock)
    clock.now += 3
    waits.charge(clock.now)
    waits.route = route
    clock.now += 1
    waits.wait_on(Leg.CONNECT)
    assert (no_route.waits[Leg.DOWNSTREAM_READ], route.waits[Leg.DOWNSTREAM_READ]) == (3.0, 1.0)


def test_scrapes_charge_a_wait_while_it_lasts_and_it_still_began_when_it_began() -> None:
    clock, route = Clock(), RouteStats("r")
    waits = Waits(route, clock)
    began = waits.wait_on(Leg.UPSTREAM_RESPONSE)
    for seconds in (1.0, 2.0, 3.0):
        clock.now += 1
        waits.charge(clock.now)
        assert route.waits[Leg.UPSTREAM_RESPONSE] == seconds
    assert (waits.waiting_on, waits.waiting_since) == (Leg.UPSTREAM_RESPONSE, began)


def test_response_that_overlaps_its_upload_is_charged_beside_it() -> None:
    clock = Clock()
    waits = Waits(RouteStats("r"), clock)
    upload, download = Meter(UPLOAD, waits), Meter(DOWNLOAD, waits)
    waits.wait_on(Leg.UPSTREAM_RESPONSE)
    upload.resume()
    clock.now += 1
    download.resume()
    clock.now += 2
    assert (waits.waiting_on, waits.waiting_since) == (Leg.UPSTREAM_READ, 101.0)
    upload.pause()
    clock.now += 4
    download.pause()
    clock.now += 8
    waits.wait_on(Leg.DOWNSTREAM_WRITE)
    assert charged(waits) == {Leg.DOWNSTREAM_READ: 3.0, Leg.UPSTREAM_READ: 6.0, Leg.UPSTREAM_RESPONSE: 8.0}


def test_files_of_a_split_wait_beside_each_other_and_beside_the_form() -> None:
    clock = Clock()
    waits = Waits(RouteStats("r"), clock)
    form, files = Meter(UPLOAD, waits), [Wait(waits), Wait(waits)]
    for each in files:
        each.wait_on(Leg.UPSTREAM_RESPONSE)
    form.resume()
    clock.now += 1
    form.pause()
    files[0].wait_on(Leg.UPSTREAM_READ)
    clock.now += 2
    for each in files:
        each.stop()
        each.stop()
    assert charged(waits) == {Leg.DOWNSTREAM_READ: 1.0, Leg.UPSTREAM_RESPONSE: 4.0, Leg.UPSTREAM_READ: 2.0}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("sleep"), TICKS),
            st.tuples(st.just("wait_on"), st.sampled_from(Leg)),
            st.tuples(st.just("meter_leg"), st.sampled_from(list(Leg))),
            st.tuples(st.sampled_from(["scrape", "upload", "download", "file"]), st.none()),
        )
    )
)
def test_legs_add_up_and_no_scrape_shows_less_than_the_one_before(steps: list[tuple[str, float | Leg | None]]) -> None:
    clock, route = Clock(), RouteStats("r")
    waits = Waits(route, clock)
    upload, download, file = Meter(UPLOAD, waits), Meter(DOWNLOAD, waits), Wait(waits)
    running: dict[str, bool] = dict.fromkeys(("upload", "download", "file"), False)
    expected, shown = 0.0, dict(route.waits)
    for name, value in steps:
        if name == "sleep":
            assert isinstance(value, float)
            clock.now += value
            expected += value * max(1, sum(running.values()))
        elif name == "wait_on":
            waits.wait_on(Leg(str(value)))
        elif name == "meter_leg":
            if running["upload"]:
                upload.wait_on(Leg(str(value)))
        elif name == "scrape":
            waits.charge(clock.now)
            assert all(route.waits[leg] >= shown[leg] for leg in Leg)
            shown = dict(route.waits)
        elif name == "file":
            if running[name]:
                file.stop()
            else:
                file.wait_on(Leg.QUEUE)
            running[name] = not running[name]
        else:
            meter = upload if name == "upload" else download
            if running[name]:
                meter.pause()
            else:
                meter.resume()
            running[name] = not running[name]
    waits.charge(clock.now)
    assert abs(sum(waits.leg_seconds.values()) - expected) < 1e-6
    assert {leg: seconds for leg, seconds in route.waits.items() if seconds} == charged(waits)

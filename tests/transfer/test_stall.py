"""The stall detector, with a clock that the test moves: silence and trickling are faults of the leg waited on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import FaultKind
from gateway.observe.stats import Direction, Leg, RouteStats
from gateway.observe.waits import Waits
from gateway.transfer import LegLimits, TransferPolicy
from gateway.transfer.meter import Meter
from gateway.transfer.stall import StallDetector
from tests.clock import Clock

IDLE, RATE, GRACE = 60.0, 1000.0, 20.0
UNLIMITED = LegLimits()
SILENT = LegLimits(IDLE, "routes.r.timeouts.idle")
RATED = LegLimits(math.inf, "", RATE, GRACE)


class Acknowledged:
    """What the peer's kernel has acknowledged."""

    def __init__(self) -> None:
        self.size = 0

    def __call__(self) -> int:
        return self.size


class Scene:
    """A detector with everything it looks at."""

    def __init__(
        self,
        read: LegLimits = UNLIMITED,
        write: LegLimits = UNLIMITED,
        total_seconds: float = math.inf,
        legs: tuple[Leg, Leg] = (Leg.DOWNSTREAM_READ, Leg.UPSTREAM_WRITE),
    ) -> None:
        policy = TransferPolicy(Direction.UPLOAD, *legs, read, write, total_seconds, "routes.r.timeouts")
        self.policy = policy
        self.clock = Clock()
        self.waits = Waits(RouteStats("r"), self.clock)
        self.meter = Meter(policy, self.waits)
        self.meter.start()
        self.meter.resume()
        self.peer = Acknowledged()
        self.detector = StallDetector(self.meter, self.peer)
        self.started = self.clock.now
        self._next_check = self.started + policy.check_seconds

    def check(self, seconds: float) -> FaultKind | None:
        """Move the clock, then check."""
        self.clock.now += seconds
        fault = self.detector.check(self.clock.now)
        return fault.kind if fault is not None else None

    def move(self, size: int, seconds: float, leg: Leg) -> None:
        """Let a chunk take `seconds`, all of them waiting on one leg."""
        self.meter.wait_on(leg)
        self.clock.now += seconds
        self.meter.wait_on(leg)
        self.meter.count(size)

    def run(self, seconds: float, leg: Leg) -> str | None:
        """Wait on one leg, with checks as often as the policy says; return the detail of the fault, if there is one."""
        end = self.clock.now + seconds
        while self._next_check <= end:
            self.clock.now = self._next_check
            self._next_check += self.policy.check_seconds
            # A scrape changes no verdict.
            self.waits.charge(self.clock.now)
            if (fault := self.detector.check(self.clock.now)) is not None:
                return fault.detail
        self.clock.now = end
        self.meter.wait_on(leg)
        return None

    def trickle(self, waits: list[Wait], leg: Leg) -> str | None:
        """Let chunks arrive after these waits; return the detail of the fault that ended it."""
        self.meter.wait_on(leg)
        for wait in waits:
            if (detail := self.run(wait.seconds, leg)) is not None:
                return detail
            if wait.size and leg is self.policy.read_leg:
                self.meter.count(wait.size)
            self.peer.size += wait.size
        return None


@dataclass(frozen=True)
class Wait:
    """A wait, and the bytes that end it."""

    seconds: float
    size: int


@pytest.mark.parametrize(
    ("legs", "kind"),
    [
        ((Leg.DOWNSTREAM_READ, Leg.UPSTREAM_WRITE), FaultKind.CLIENT_IDLE),
        ((Leg.UPSTREAM_READ, Leg.DOWNSTREAM_WRITE), FaultKind.UPSTREAM_IDLE),
        ((Leg.DISK_READ, Leg.DOWNSTREAM_WRITE), FaultKind.DISK_SLOW),
    ],
)
def test_silent_source_is_a_fault_once_idle_has_passed(legs: tuple[Leg, Leg], kind: FaultKind) -> None:
    scene = Scene(read=SILENT, legs=legs)
    assert scene.check(IDLE - 1) is None
    assert scene.check(1) is kind


@pytest.mark.parametrize(
    ("legs", "kind"),
    [
        ((Leg.DOWNSTREAM_READ, Leg.UPSTREAM_WRITE), FaultKind.UPSTREAM_STUCK),
        ((Leg.UPSTREAM_READ, Leg.DOWNSTREAM_WRITE), FaultKind.CLIENT_IDLE),
        ((Leg.DOWNSTREAM_READ, Leg.DISK_WRITE), FaultKind.DISK_SLOW),
    ],
)
def test_sink_that_takes_nothing_is_a_fault_once_idle_has_passed(legs: tuple[Leg, Leg], kind: FaultKind) -> None:
    scene = Scene(write=SILENT, legs=legs)
    scene.meter.wait_on(legs[1])
    # The first check only learns what was acknowledged before.
    assert scene.check(1) is None
    assert scene.check(IDLE - 1) is None
    assert scene.check(1) is kind


def test_acknowledged_bytes_are_progress_while_a_chunk_leaves_slowly() -> None:
    """A client at 50 KB/s leaves the kernel's buffer full for half a minute: it was cut as silent."""
    scene = Scene(write=SILENT)
    scene.meter.wait_on(Leg.UPSTREAM_WRITE)
    for _ in range(4):
        scene.peer.size += 1
        assert scene.check(IDLE - 1) is None
    assert scene.check(IDLE) is FaultKind.UPSTREAM_STUCK


def test_acknowledged_bytes_are_no_progress_of_the_source() -> None:
    scene = Scene(read=SILENT, write=SILENT)
    assert scene.check(IDLE - 1) is None
    scene.peer.size += 1
    assert scene.check(1) is FaultKind.CLIENT_IDLE


def test_each_wait_is_timed_by_itself() -> None:
    scene = Scene(read=SILENT, write=SILENT)
    for leg in (Leg.UPSTREAM_WRITE, Leg.DOWNSTREAM_READ, Leg.UPSTREAM_WRITE):
        assert scene.check(IDLE - 1) is None
        scene.meter.wait_on(leg)


def test_filters_may_take_any_time() -> None:
    scene = Scene(read=SILENT, write=SILENT)
    scene.meter.wait_on(Leg.FILTER)
    assert scene.check(100 * IDLE) is None


LEGS = pytest.mark.parametrize("leg", [Leg.DOWNSTREAM_READ, Leg.UPSTREAM_WRITE])
#: A gap of a trickle, and a pause; what lies between may be either. One test adds a hundredth of a second.
_GAPS = st.floats(0.01, GRACE / 4 - 0.01)
_PAUSES = st.floats(GRACE / 2, 100 * GRACE)


def waits_at(rate: float) -> st.SearchStrategy[Wait]:
    """Return waits of a trickle, each ended by a chunk at this rate."""
    return _GAPS.map(lambda seconds: Wait(seconds, math.ceil(seconds * rate)))


@LEGS
@given(st.lists(st.one_of(waits_at(RATE), waits_at(100 * RATE), _PAUSES.map(lambda seconds: Wait(seconds, 1)))))
def test_transfer_at_its_rate_is_never_cut_whatever_its_pauses(leg: Leg, waits: list[Wait]) -> None:
    scene = Scene(read=RATED, write=RATED)
    assert scene.trickle(waits, leg) is None


@LEGS
@given(st.lists(waits_at(RATE * 0.7), min_size=1))
def test_trickle_below_its_rate_is_cut_within_twice_grace(leg: Leg, waits: list[Wait]) -> None:
    # Rounding up makes tiny chunks faster than the rate.
    waits = [Wait(wait.seconds + 0.01, wait.size) for wait in waits]
    scene = Scene(read=RATED, write=RATED)
    while scene.clock.now - scene.started <= 2 * GRACE:
        detail = scene.trickle(waits, leg)
        if detail is not None:
            assert "lower routes.r.timeouts.min_rate (1000 bytes/s) or raise routes.r.timeouts.grace (20 s)" in detail
            return
    pytest.fail("the trickle was not cut")


@LEGS
def test_single_bytes_between_pauses_are_left_to_idle(leg: Leg) -> None:
    scene = Scene(read=RATED, write=RATED)
    assert scene.trickle([Wait(1.25 * GRACE, 1)] * 20, leg) is None


def test_burst_before_a_pause_does_not_pay_for_it() -> None:
    """A client that paused its upload for 25 s was cut after `grace`, so `idle` never meant what it said."""
    scene = Scene(read=RATED, write=RATED)
    assert scene.trickle([Wait(0.1, 100)] * 60 + [Wait(25, 100)] + [Wait(0.1, 100)] * 600, Leg.DOWNSTREAM_READ) is None


def test_rate_is_held_against_the_leg_that_was_slow_only() -> None:
    scene = Scene(read=RATED)
    for _ in range(100):
        # The upstream took most of the window: the client is not to blame for the low rate.
        assert scene.trickle([Wait(0.1, 1)], Leg.DOWNSTREAM_READ) is None
        scene.meter.wait_on(Leg.UPSTREAM_WRITE)
        assert scene.run(0.9, Leg.DOWNSTREAM_READ) is None


@pytest.mark.parametrize("leg", [Leg.DOWNSTREAM_READ, Leg.FILTER])
def test_total_is_a_fault_however_fast_the_body_is(leg: Leg) -> None:
    scene = Scene(total_seconds=5)
    scene.move(10**9, 4, Leg.UPSTREAM_WRITE)
    assert scene.check(0) is None
    scene.meter.wait_on(leg)
    # A timer that finds it while a filter works once raised KeyError in the loop.
    assert scene.check(1) is FaultKind.CLIENT_TOO_SLOW


def test_fault_names_the_key_to_change_its_value_and_the_direction() -> None:
    silent = Scene(read=SILENT)
    silent.clock.now += IDLE
    fault = silent.detector.check(silent.clock.now)
    assert fault is not None
    assert "nothing of the upload (0 bytes so far) for 60 s" in fault.detail
    assert "raise routes.r.timeouts.idle (60 s)" in fault.detail
    late = Scene(total_seconds=5)
    late.clock.now += 5
    fault = late.detector.check(late.clock.now)
    assert fault is not None
    assert "raise routes.r.timeouts.total (5 s)" in fault.detail


def test_policy_checks_a_few_times_per_shortest_limit() -> None:
    legs = (Direction.UPLOAD, Leg.DOWNSTREAM_READ, Leg.UPSTREAM_WRITE)
    assert TransferPolicy(*legs).check_seconds == math.inf
    assert TransferPolicy(*legs, LegLimits(40), LegLimits(60)).check_seconds == 10
    assert TransferPolicy(*legs, total_seconds=0.001).check_seconds == 0.02
    rated = LegLimits(60, "", 1, 16)
    assert TransferPolicy(*legs, rated, rated).check_seconds == 2
    # A rate of 0 and a grace of `off` measure nothing.
    assert TransferPolicy(*legs, LegLimits(60, "", 0, 16), LegLimits(60, "", 1, math.inf)).check_seconds == 15

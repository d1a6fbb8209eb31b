"""The stall detector, with a clock that the test moves: silence and a low rate are faults of the leg waited on."""

from __future__ import annotations

import math

import pytest

from gateway.errors import FaultKind
from gateway.observe.stats import Direction, Leg, RouteStats
from gateway.transfer import LegLimits, TransferPolicy
from gateway.transfer.meter import Meter
from gateway.transfer.stall import StallDetector
from tests.transfer.test_meter import FakeClock

IDLE, RATE, GRACE = 60.0, 1000.0, 10.0
UNLIMITED = LegLimits()


class Pending:
    """Bytes written that have not left the process."""

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
        policy = TransferPolicy(Direction.UPLOAD, *legs, read, write, total_seconds)
        self.clock = FakeClock()
        self.meter = Meter(policy, RouteStats("r"), clock=self.clock)
        self.meter.start()
        self.pending = Pending()
        self.detector = StallDetector(self.meter, self.pending)

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


@pytest.mark.parametrize(
    ("legs", "kind"),
    [
        ((Leg.DOWNSTREAM_READ, Leg.UPSTREAM_WRITE), FaultKind.CLIENT_IDLE),
        ((Leg.UPSTREAM_READ, Leg.DOWNSTREAM_WRITE), FaultKind.UPSTREAM_IDLE),
        ((Leg.DISK_READ, Leg.DOWNSTREAM_WRITE), FaultKind.DISK_SLOW),
    ],
)
def test_silent_source_is_a_fault_once_idle_has_passed(legs: tuple[Leg, Leg], kind: FaultKind) -> None:
    scene = Scene(read=LegLimits(IDLE), legs=legs)
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
    scene = Scene(write=LegLimits(IDLE), legs=legs)
    scene.meter.wait_on(legs[1])
    assert scene.check(IDLE - 1) is None
    assert scene.check(1) is kind


def test_bytes_that_drain_are_progress() -> None:
    scene = Scene(write=LegLimits(IDLE))
    scene.meter.wait_on(Leg.UPSTREAM_WRITE)
    for size in (3000, 2000, 1000):
        scene.pending.size = size
        assert scene.check(IDLE - 1) is None
    assert scene.check(IDLE) is FaultKind.UPSTREAM_STUCK


def test_each_wait_is_timed_by_itself() -> None:
    scene = Scene(read=LegLimits(IDLE), write=LegLimits(IDLE))
    for leg in (Leg.UPSTREAM_WRITE, Leg.DOWNSTREAM_READ, Leg.UPSTREAM_WRITE):
        assert scene.check(IDLE - 1) is None
        scene.meter.wait_on(leg)


def test_filters_may_take_any_time() -> None:
    scene = Scene(read=LegLimits(IDLE), write=LegLimits(IDLE))
    scene.meter.wait_on(Leg.FILTER)
    assert scene.check(100 * IDLE) is None


@pytest.mark.parametrize(
    ("leg", "kind"), [(Leg.DOWNSTREAM_READ, FaultKind.CLIENT_TOO_SLOW), (Leg.UPSTREAM_WRITE, FaultKind.UPSTREAM_STUCK)]
)
def test_leg_below_its_rate_over_a_window_is_a_fault(leg: Leg, kind: FaultKind) -> None:
    limits = LegLimits(IDLE, RATE, GRACE)
    scene = Scene(read=limits, write=limits)
    scene.move(int(RATE * GRACE) - 1, GRACE, leg)
    assert scene.check(0) is kind


def test_leg_at_its_rate_is_fine_window_after_window() -> None:
    limits = LegLimits(IDLE, RATE, GRACE)
    scene = Scene(read=limits, write=limits)
    for _ in range(5):
        scene.move(int(RATE * GRACE), GRACE, Leg.DOWNSTREAM_READ)
        assert scene.check(0) is None


def test_rate_is_held_against_the_leg_that_was_slow_only() -> None:
    scene = Scene(read=LegLimits(IDLE, RATE, GRACE))
    # The upstream took most of the window: the client is not to blame for the low rate.
    scene.move(10, GRACE * 0.9, Leg.UPSTREAM_WRITE)
    scene.move(10, GRACE * 0.1, Leg.DOWNSTREAM_READ)
    assert scene.check(0) is None


@pytest.mark.parametrize("leg", [Leg.DOWNSTREAM_READ, Leg.FILTER])
def test_total_is_a_fault_however_fast_the_body_is(leg: Leg) -> None:
    scene = Scene(total_seconds=5)
    scene.move(10**9, 4, Leg.UPSTREAM_WRITE)
    assert scene.check(0) is None
    scene.meter.wait_on(leg)
    # A timer that finds it while a filter works once raised KeyError in the loop.
    assert scene.check(1) is FaultKind.CLIENT_TOO_SLOW


def test_policy_checks_a_few_times_per_shortest_limit() -> None:
    legs = (Direction.UPLOAD, Leg.DOWNSTREAM_READ, Leg.UPSTREAM_WRITE)
    assert TransferPolicy(*legs).check_seconds == math.inf
    assert TransferPolicy(*legs, LegLimits(40), LegLimits(60)).check_seconds == 10
    assert TransferPolicy(*legs, total_seconds=0.001).check_seconds == 0.02
    assert TransferPolicy(*legs, LegLimits(grace_seconds=8), LegLimits(grace_seconds=4)).grace_seconds == 4

"""What an exchange waits for now, and its seconds by leg so far: plain numbers, charged as they pass.

An exchange is one `Waits` from its head to its end. While nothing else of it waits, it charges its seconds to the leg
given last. A transfer that moves bytes (its meter) and a file of a `split` (`Wait`) charge theirs themselves; the
exchange's own seconds stand still meanwhile, so that none is charged twice. Where several wait at once, each is
charged: then the legs add up to more than the wall time.

    call                  by                       effect
    wait_on(leg)          the exchange             the seconds until now are charged; `leg` is waited on now
    begin(other, now)     a meter, a file          `other` charges its own seconds, the exchange none
    end(other, now)       a meter, a file          the last of them: the exchange goes on with the leg it had
    charge(now)           a scrape, the live view  what passed so far is charged, the waits go on
    finish()              the exchange, once       the seconds until now are charged, the last

Only the event loop's thread calls. A scrape charges before it is rendered, so every number in it only rises; computing
"charged so far plus under way" while rendering would count a wait twice or not at all if it ended meanwhile, and adding
fractions in another order could make a counter fall by a rounding error, which Prometheus takes for a restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.observe.stats import Leg, RouteStats

#: Returns seconds; only differences mean something.
Clock = Callable[[], float]


class Waiting(Protocol):
    """One thing that waits."""

    #: The leg waited on, and since when.
    waiting_on: Leg
    waiting_since: float

    def charge(self, now: float) -> None:
        """Charge the seconds until now; the wait goes on."""
        ...


class Waits:
    """The waits of one exchange, and its seconds by leg."""

    __slots__ = ("_charged_until", "_others", "_own_leg", "clock", "is_over", "leg_seconds", "own_since", "route")

    def __init__(self, route: RouteStats, clock: Clock = time.monotonic, since: float | None = None) -> None:
        """Count from now on, or from an earlier time on."""
        self.clock = clock
        #: Where seconds are charged: the route's statistics, once it is chosen.
        self.route = route
        #: Seconds charged so far to each leg that was waited on.
        self.leg_seconds: dict[Leg, float] = {}
        #: Its head was just read.
        self._own_leg = Leg.DOWNSTREAM_READ
        #: When the exchange began to wait on its own leg.
        self.own_since = self._charged_until = clock() if since is None else since
        #: What charges its own seconds now, in the order in which they began.
        self._others: Sequence[Waiting] = ()
        #: Whether the exchange has ended.
        self.is_over = False

    @property
    def waiting_on(self) -> Leg:
        """The leg waited on; that of the youngest wait where there are several."""
        return self._others[-1].waiting_on if self._others else self._own_leg

    @property
    def waiting_since(self) -> float:
        """When that wait began."""
        return self._others[-1].waiting_since if self._others else self.own_since

    def wait_on(self, leg: Leg, now: float | None = None) -> float:
        """Wait on `leg` from now on; return the time. While others wait, it is only the leg for afterwards."""
        if now is None:
            now = self.clock()
        if not self._others:
            # `_charge_own` without the call: several times per small request.
            seconds, before, spent = now - self._charged_until, self._own_leg, self.leg_seconds
            spent[before] = spent.get(before, 0.0) + seconds
            self.route.waits[before] += seconds
            self._charged_until = self.own_since = now
        self._own_leg = leg
        return now

    def begin(self, other: Waiting, now: float) -> None:
        """Let `other` charge its own seconds."""
        if not self._others:
            self._charge_own(now)
        self._others = [*self._others, other]

    def end(self, other: Waiting, now: float) -> None:
        """Go on without `other`, which has charged its seconds."""
        self._others = [each for each in self._others if each is not other]
        if not self._others:
            self.own_since = self._charged_until = now

    def charge(self, now: float) -> None:
        """Charge the seconds until now; every wait goes on."""
        if not self._others:
            self._charge_own(now)
        for other in self._others:
            other.charge(now)

    def finish(self) -> float:
        """Charge the seconds until now, the last; return the time."""
        now = self.wait_on(self._own_leg)
        for other in self._others:
            other.charge(now)
        self.is_over = True
        return now

    def add(self, leg: Leg, seconds: float) -> None:
        """Charge seconds to a leg: of the exchange, and of its route."""
        spent = self.leg_seconds
        spent[leg] = spent.get(leg, 0.0) + seconds
        self.route.waits[leg] += seconds

    def _charge_own(self, now: float) -> None:
        seconds = now - self._charged_until
        self._charged_until = now
        self.add(self._own_leg, seconds)


class Wait:
    """What one file of a split waits for beside the transfer of the form: a slot, a connection, its response."""

    def __init__(self, waits: Waits) -> None:
        self._waits = waits
        self._is_waiting = False
        self.waiting_on = Leg.QUEUE
        self.waiting_since = self._charged_until = 0.0

    def wait_on(self, leg: Leg) -> None:
        """Wait on `leg` from now on."""
        now = self._waits.clock()
        if self._is_waiting:
            self.charge(now)
        else:
            self._is_waiting = True
            self._waits.begin(self, now)
        self.waiting_on = leg
        self.waiting_since = self._charged_until = now

    def stop(self) -> None:
        """Wait for nothing: the transfer is charged, or the file has ended. Calls after the first change nothing."""
        if self._is_waiting:
            self._is_waiting = False
            now = self._waits.clock()
            self.charge(now)
            self._waits.end(self, now)

    def charge(self, now: float) -> None:
        """Charge the seconds until now; the wait goes on."""
        seconds = now - self._charged_until
        self._charged_until = now
        self._waits.add(self.waiting_on, seconds)

"""What an exchange waits for now, and its seconds by leg so far: plain numbers, charged as they pass.

An exchange is one `Waits` from its head to its end. While nothing else of it waits, it charges its seconds to the leg
given last. A transfer that moves bytes (its meter) and a file of a `split` (`Wait`) charge theirs themselves; the
exchange's own seconds stand still meanwhile, so that none is charged twice. Where several wait at once, each is
charged: then the legs add up to more than the wall time.

    call                  by                       effect
    wait_on(leg)          the exchange             the seconds until now are charged; `leg` is waited on now
    begin(other, now)     a meter, a file          `other` charges its own seconds, the exchange none
    end(other, now)       a meter, a file          the last of them: the exchange goes on with the leg it had
    charge(now)           a scrape, the log line   what passed so far is charged, the waits go on

Only the event loop's thread calls. A scrape charges before it is rendered, so every number in it only rises; computing
"charged so far plus under way" while rendering would count a wait twice or not at all if it ended meanwhile, and adding
fractions in another order could make a counter fall by a rounding error, which Prometheus takes for a restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from gateway.observe.stats import Leg, RouteStats

#: Returns seconds; only differences mean something.
Clock = Callable[[], float]
_NO_SECONDS: Final = dict.fromkeys(Leg, 0.0)


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

    __slots__ = ("_charged_until", "_others", "_own_leg", "_own_since", "clock", "leg_seconds", "route")

    def __init__(self, route: RouteStats, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        #: Where seconds are charged: the route's statistics, once it is chosen.
        self.route = route
        #: Seconds charged to each leg so far.
        self.leg_seconds = _NO_SECONDS.copy()
        #: Its head was just read.
        self._own_leg = Leg.DOWNSTREAM_READ
        self._own_since = self._charged_until = clock()
        #: What charges its own seconds now, in the order in which they began.
        self._others: list[Waiting] = []

    def begin_at(self, since: float) -> None:
        """Count from an earlier time on. Before anything was charged."""
        self._own_since = self._charged_until = since

    @property
    def waiting_on(self) -> Leg:
        """The leg waited on; that of the youngest wait where there are several."""
        return self._others[-1].waiting_on if self._others else self._own_leg

    @property
    def waiting_since(self) -> float:
        """When that wait began."""
        return self._others[-1].waiting_since if self._others else self._own_since

    def wait_on(self, leg: Leg) -> float:
        """Wait on `leg` from now on; return the time. While others wait, it is only the leg for afterwards."""
        now = self.clock()
        if not self._others:
            # `_charge_own` without the call: three times per small request.
            before = self._own_leg
            seconds = now - self._charged_until
            self.leg_seconds[before] += seconds
            self.route.waits[before] += seconds
            self._charged_until = self._own_since = now
        self._own_leg = leg
        return now

    def begin(self, other: Waiting, now: float) -> None:
        """Let `other` charge its own seconds."""
        if not self._others:
            # As in `wait_on`: once per transfer.
            seconds = now - self._charged_until
            self._charged_until = now
            self.leg_seconds[self._own_leg] += seconds
            self.route.waits[self._own_leg] += seconds
        self._others.append(other)

    def end(self, other: Waiting, now: float) -> None:
        """Go on without `other`, which has charged its seconds."""
        self._others.remove(other)
        if not self._others:
            self._own_since = self._charged_until = now

    def charge(self, now: float) -> None:
        """Charge the seconds until now; every wait goes on."""
        if not self._others:
            self._charge_own(now)
        for other in self._others:
            other.charge(now)

    def _charge_own(self, now: float) -> None:
        seconds = now - self._charged_until
        self._charged_until = now
        self.leg_seconds[self._own_leg] += seconds
        self.route.waits[self._own_leg] += seconds


class LiveWaits:
    """The waits of all exchanges under way."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._waits: set[Waits] = set()

    def __contains__(self, waits: Waits) -> bool:
        """Return whether an exchange is under way."""
        return waits in self._waits

    def __iter__(self) -> Iterator[Waits]:
        """Iterate over the exchanges under way."""
        return iter(self._waits)

    def add(self, waits: Waits) -> None:
        """Add an exchange that begins."""
        self._waits.add(waits)

    def remove(self, waits: Waits) -> None:
        """Remove an exchange that has ended."""
        self._waits.discard(waits)

    def charge(self) -> None:
        """Charge what every exchange under way has waited so far: before each scrape."""
        now = self._clock()
        for waits in self._waits:
            waits.charge(now)


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
        self._waits.leg_seconds[self.waiting_on] += seconds
        self._waits.route.waits[self.waiting_on] += seconds

"""Measures the time a proxy adds to a small request at half of its own highest rate: the 99th percentile.

Requests are due at times that do not depend on the responses (an open loop), so a late response delays no other
measurement, and a request that waits for a connection is late. What is added is the 99th percentile through the proxy
minus that of the load generator alone at the same rate, just before.

A virtual machine is paused for milliseconds several times a second, and one such pause makes more than a hundredth of
the requests of a second late, whatever the proxy does. So the measurement consists of short slices, the proxies take
turns, and the result is the median over the slices. The load generator sees the pauses of its own core: a slice in
which it was paused is left out, whichever proxy it was for.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.bench import small_requests
from tests.bench.generator import Generator, Load, Mode, Timing, run_generator
from tests.bench.machine import StolenTime
from tests.bench.peers import COMPILED, Peer, Setting, start_peers

KINDS = {"GET": small_requests.GET, "JSON": small_requests.JSON, "form": small_requests.FORM}
_CONNECTIONS = 64
#: Each finds the highest rate; the first also warms a peer up.
_RATE_RUNS = 3
#: How long the load generator runs alone, in relation to a slice.
_ALONE_SHARE = 0.5
#: A slice is left out if the load generator was paused for a larger share of it: with the requests that wait meanwhile
#: it would be about half of the hundredth that is looked for.
_MAX_PAUSED_SHARE = 0.002


class Row(NamedTuple):
    """A row of the table."""

    kind: str
    spacing: Mode
    #: Whether all peers have half of the gateway's highest rate in place of their own.
    is_common: bool = False

    def __str__(self) -> str:
        return f"{self.kind}, {self.spacing} intervals{', the same rate for all' if self.is_common else ''}"


class Slice(NamedTuple):
    """One measurement, and the load generator alone just before."""

    through: Timing
    alone: Timing
    seconds: float

    @property
    def is_used(self) -> bool:
        """Whether the load generator was not paused."""
        limit = _MAX_PAUSED_SHARE * self.seconds * 1e6
        return self.through.paused <= limit and self.alone.paused <= limit * _ALONE_SHARE

    @property
    def added(self) -> float:
        """Microseconds that the proxy added."""
        return self.through.p99 - self.alone.p99


@dataclass
class Late:
    """What the requests of one row saw at one peer: the rate of each start, and the slices of all."""

    rates: list[float] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)

    @property
    def added(self) -> list[float]:
        """Microseconds that the proxy added, by slice."""
        return [one.added for one in self.slices if one.is_used]

    def __str__(self) -> str:
        rate = f"at {statistics.median(self.rates):.0f}"
        if len(self.added) < 2:
            return f"- {rate}"
        low, middle, high = statistics.quantiles(self.added, method="inclusive")
        return f"{middle:.0f} ({low:.0f}-{high:.0f}) {rate}"


@dataclass
class Found:
    """All that was measured."""

    lates: dict[tuple[Row, str], Late] = field(default_factory=dict)
    stolen: str = ""


def rows_of(kinds: list[str], peers: tuple[str, ...]) -> list[Row]:
    """Return the rows of the table."""
    spacings: tuple[Mode, ...] = ("even", "random")
    rows = [Row(kind, spacing) for kind in kinds for spacing in spacings]
    return rows + [Row(kind, "random", is_common=True) for kind in kinds if "gateway" in peers]


def run(kinds: list[str], setting: Setting, *, count: int, slices: int, seconds: float) -> Found:
    """Measure every row on every peer, in slices of `seconds`, at least `slices` of them.

    `count` requests find the highest rate.
    """
    found, stolen = Found(), StolenTime()
    rows = rows_of(kinds, setting.peers)
    rounds = -(-slices // setting.starts)
    with run_generator() as generator:
        for start in range(setting.starts):
            with start_peers(setting, generator.port) as peers:
                rates = _find_rates(kinds, peers, generator, count)
                for row in rows:
                    for peer in peers:
                        late = found.lates.setdefault((row, peer.name), Late())
                        late.rates.append(rates[row.kind, "gateway" if row.is_common else peer.name])
                for number in range(start * rounds, (start + 1) * rounds):
                    turn = number % len(peers)
                    for row in rows:
                        for peer in [*peers[turn:], *peers[:turn]]:
                            late = found.lates[row, peer.name]
                            late.slices.append(_measure(peer, row, generator, late.rates[-1], seconds, seed=number))
                            peer.empty_log()
            print(f"half load: start {start + 1} of {setting.starts}", file=sys.stderr, flush=True)
    found.stolen = str(stolen)
    return found


def _find_rates(kinds: list[str], peers: list[Peer], generator: Generator, count: int) -> dict[tuple[str, str], float]:
    """Return half of the highest rate of every peer, by kind and peer."""
    rates: dict[tuple[str, str], float] = {}
    for kind in kinds:
        for _ in range(_RATE_RUNS):
            for peer in peers:
                rate = generator.run(peer.port, Load(KINDS[kind], count, _CONNECTIONS)).rate / 2
                rates[kind, peer.name] = max(rate, rates.get((kind, peer.name), 0.0))
                peer.empty_log()
    return rates


def _measure(peer: Peer, row: Row, generator: Generator, rate: float, seconds: float, *, seed: int) -> Slice:
    """Measure one slice. The load generator alone is also the time for the peer before to close its connections."""

    def ask(port: int, length: float) -> Timing:
        count = max(1, int(rate * length))
        return generator.run(port, Load(KINDS[row.kind], count, _CONNECTIONS, row.spacing, rate, seed))

    alone = ask(generator.port, seconds * _ALONE_SHARE)
    return Slice(ask(peer.port, seconds), alone, seconds)


def table(found: Found, peers: tuple[str, ...]) -> str:
    """Return medians and quartiles of what is added, and the medians of the gateway's forms by Envoy's, as Markdown."""
    forms = [name for name in ("gateway", COMPILED) if name in peers]
    titles = [*peers, *(f"{name} / envoy" for name in forms), "slices"]
    lines = [
        f"| p99 added, us (quartiles) at requests/s | {' | '.join(titles)} |",
        "|---" * (len(titles) + 1) + "|",
    ]
    for row in dict.fromkeys(row for row, _ in found.lates):
        lates = {peer: found.lates[row, peer] for peer in peers}
        used = [len(late.added) for late in lates.values()]
        ratios = [_ratio(lates, name) for name in forms]
        cells = [str(row), *map(str, lates.values()), *ratios, f"{min(used)}-{max(used)}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(lates: dict[str, Late], form: str) -> str:
    own, other = ([*lates[name].added] if name in lates else [] for name in (form, "envoy"))
    if not own or not other or statistics.median(other) <= 0:
        return "-"
    return f"{statistics.median(own) / statistics.median(other):.2f}"


def describe_slices(found: Found) -> str:
    """Return how many slices were left out, and how busy the host was, in words."""
    slices = [one for late in found.lates.values() for one in late.slices]
    left_out = sum(not one.is_used for one in slices)
    alone = statistics.median(one.alone.p99 for one in slices)
    return (
        f"Slices of {slices[0].seconds:g} s. {left_out} of all {len(slices)} are left out, in which the load generator "
        f"was paused for more than {_MAX_PAUSED_SHARE:.1%} of the time. Alone it has a 99th percentile of {alone:.0f} "
        f"us (median). {found.stolen}"
    )

"""Measures the time a proxy adds to a small request at half of its own highest rate: the 99th percentile.

Requests are due at times that do not depend on the responses (an open loop), so a late response delays no other
measurement, and a request that waits for a connection is late. What is added is the 99th percentile through the proxy
minus that of the load generator alone at the same rate.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, field

from tests.bench import small_requests
from tests.bench.generator import Generator, Load, Mode, run_generator
from tests.bench.peers import Peer, Setting, start_peers

KINDS = {"GET": small_requests.GET, "JSON": small_requests.JSON, "form": small_requests.FORM}
SPACINGS: tuple[Mode, ...] = ("even", "random")
_CONNECTIONS = 64
_LEAST_COUNT = 1000


@dataclass
class Late:
    """What one kind of request saw at one peer, per start: the rate, and microseconds added."""

    rate: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)


#: By kind, spacing and peer.
Lates = dict[tuple[str, str, str], Late]


def run(kinds: list[str], setting: Setting, *, count: int, seconds: float) -> Lates:
    """Measure every kind on every peer, the order rotating; `count` requests find the highest rate."""
    found: Lates = {}
    with run_generator() as generator:
        for start in range(setting.starts):
            with start_peers(setting, generator.port) as peers:
                turn = start % len(peers)
                for kind in kinds:
                    for peer in [*peers[turn:], *peers[:turn]]:
                        _measure(peer, kind, generator, found, count=count, seconds=seconds)
            print(f"half load: start {start + 1} of {setting.starts}", file=sys.stderr, flush=True)
    return found


def _measure(peer: Peer, kind: str, generator: Generator, found: Lates, *, count: int, seconds: float) -> None:
    request = KINDS[kind]
    # Twice: the first run warms the peer up.
    rate = max(generator.run(peer.port, Load(request, count, _CONNECTIONS)).rate for _ in range(2)) / 2
    for spacing in SPACINGS:
        load = Load(request, max(int(rate * seconds), min(count, _LEAST_COUNT)), _CONNECTIONS, spacing, rate)
        alone = generator.run(generator.port, load)
        late = found.setdefault((kind, spacing, peer.name), Late())
        late.rate.append(rate)
        late.added.append(generator.run(peer.port, load).p99 - alone.p99)
    peer.empty_log()


def table(kinds: list[str], found: Lates, peers: tuple[str, ...]) -> str:
    """Return the medians, and the gateway's in relation to Envoy's, as Markdown."""
    lines = [
        f"| p99 added, us (at requests/s) | {' | '.join(peers)} | gateway / envoy |",
        "|---" * (len(peers) + 2) + "|",
    ]
    for kind in kinds:
        for spacing in SPACINGS:
            lates = {peer: found[kind, spacing, peer] for peer in peers}
            cells = [
                f"{statistics.median(late.added):.0f} ({statistics.median(late.rate):.0f})" for late in lates.values()
            ]
            ratio = "-"
            if "gateway" in lates and "envoy" in lates:
                own, other = (statistics.median(lates[name].added) for name in ("gateway", "envoy"))
                ratio = f"{own / other:.2f}" if other > 0 else "-"
            lines.append(f"| {kind}, {spacing} intervals | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)

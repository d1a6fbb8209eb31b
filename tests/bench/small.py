"""Run the benchmark of small requests: CPU of the proxy per request, on a core of its own; print medians and ratios.

`--quick` compares the gateway with that of another commit and with Envoy on three cases, in under a minute. Clients and
upstream are the load generator (`load_generator.c`) on another core. Every proxy writes an access log.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
import sys
import time
from dataclasses import dataclass, field, replace

from tests.bench import half_load, page
from tests.bench import small_requests as requests
from tests.bench.before import ROOT, check_import, checkout, describe
from tests.bench.compiled import compiled_tree
from tests.bench.generator import Generator, Load, LoadError, missing, run_generator
from tests.bench.interpreter import choose
from tests.bench.interpreter import describe as describe_python
from tests.bench.machine import Usage, describe_others
from tests.bench.peers import COMPILED, COPY, Peer, Setting, available, exit_on_sigterm, start_peers

ALL = frozenset({"gateway", COMPILED, "before", COPY, "naive", "nginx", "haproxy", "envoy"})
PEERS = ("gateway", COMPILED, "before", COPY, "naive", "aiohttp alone", "nginx", "haproxy", "envoy")
QUICK_PEERS = ("gateway", "before", "envoy")
#: The others are compared by CPU only.
_HALF_LOAD_PEERS = frozenset({"gateway", COMPILED, "nginx", "haproxy", "envoy"})
#: Of each peer in each row, and how long one takes.
_HALF_LOAD_SLICES, _HALF_LOAD_SECONDS = 14, 0.2
#: A run of this part of the requests comes before what is measured, on every new process.
_WARM_UP = 4


@dataclass(frozen=True)
class Case:
    """One kind of small request and how it is sent."""

    name: str
    load: Load
    peers: frozenset[str] = ALL
    #: What the gateway is meant to cost at most, in relation to Envoy.
    target: float | None = None
    is_quick: bool = False


@dataclass
class Cost:
    """What one case cost on one peer, per round: microseconds of CPU per request, requests per second, latencies."""

    cpu: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)


Costs = dict[tuple[str, str], Cost]


def cases(count: int) -> list[Case]:
    """Return the cases, with this many requests a run."""
    kinds = [
        ("GET", requests.GET, ALL | {"aiohttp alone"}, (1.15, 1.4)),
        ("JSON", requests.JSON, ALL, (1.15, 1.4)),
        ("form", requests.FORM, ALL, (1.5, 1.7)),
    ]
    found = [
        Case(
            f"{name}, {connections} connection{'s' if connections > 1 else ''}",
            Load(request, count, connections),
            peers,
            at_64 if connections == 64 else target,
            is_quick=connections == 8,
        )
        for name, request, peers, (target, at_64) in kinds
        for connections in (1, 8, 64)
    ]
    found.append(Case("JSON with 11 headers, 8 connections", Load(requests.JSON_WITH_HEADERS, count, 8)))
    found += [
        Case(f"{name}, 8 at once, a new connection each", Load(request, count // 2, 8, "cold"), peers)
        for name, request, peers, _ in kinds
    ]
    return found


def run(chosen: list[Case], setting: Setting) -> Costs:
    """Run every case on every peer, round by round, the order rotating.

    Peers are started several times: two processes of one program differ by more than two runs of one process.
    """
    costs: Costs = {}
    with run_generator() as generator:
        for start in range(setting.starts):
            with start_peers(setting, generator.port) as peers:
                for number in range(-1, setting.rounds):
                    turn = (start + number) % len(peers)
                    order = [*peers[turn:], *peers[:turn]]
                    _run_round(chosen, order, generator, None if number < 0 else costs)
            print(f"start {start + 1} of {setting.starts}", file=sys.stderr, flush=True)
    return costs


def _run_round(chosen: list[Case], peers: list[Peer], generator: Generator, costs: Costs | None) -> None:
    """Run all cases once. Without `costs` it is the warm-up: fewer requests, and nothing is recorded."""
    for case in chosen:
        for peer in peers:
            if peer.name not in case.peers:
                continue
            load = case.load
            if costs is None:
                load = Load(load.request, max(load.count // _WARM_UP, load.connections), load.connections, load.mode)
            measure(peer, case.name, load, generator, Cost() if costs is None else _cost(costs, case.name, peer.name))


def _cost(costs: Costs, case: str, peer: str) -> Cost:
    return costs.setdefault((case, peer), Cost())


def measure(peer: Peer, case: str, load: Load, generator: Generator, cost: Cost) -> None:
    """Send one load to a peer and record what it cost. Raises LoadError, with the names of both."""
    before = peer.cpu_seconds()
    try:
        timing = generator.run(peer.port, load)
    except LoadError as error:
        raise LoadError(f"{case}, {peer.name}: {error}") from error
    cost.cpu.append((peer.cpu_seconds() - before) * 1e6 / load.count)
    cost.rate.append(timing.rate)
    cost.p50.append(timing.p50)
    cost.p99.append(timing.p99)
    peer.empty_log()


def ratio(own: Cost, other: Cost) -> str:
    """Return the median of the ratios of CPU of the rounds, with the smallest and the largest."""
    ratios = [mine / theirs for mine, theirs in zip(own.cpu, other.cpu, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def table(chosen: list[Case], costs: Costs, peers: tuple[str, ...]) -> str:
    """Return the medians of CPU per request and the ratios of the gateway's two forms to other peers, as Markdown."""
    pairs = [("gateway", "before"), ("gateway", "envoy"), (COMPILED, "envoy"), (COMPILED, "nginx")]
    compared = [pair for pair in pairs if set(pair) <= set(peers)]
    ratios = [f"{own} / {other}" for own, other in compared]
    lines = [
        f"| us of CPU per request | {' | '.join([*peers, *ratios])} | target |",
        "|---" * (len(peers) + len(ratios) + 2) + "|",
    ]
    for case in chosen:
        cells = []
        for name in peers:
            cost = costs.get((case.name, name))
            cells.append(f"{statistics.median(cost.cpu):.1f}" if cost else "-")
        cells += [ratio(costs[case.name, own], costs[case.name, other]) for own, other in compared]
        target = f"{case.target} x envoy" if case.target else "-"
        lines.append(f"| {' | '.join([case.name, *cells, target])} |")
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.small", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, help="requests of a run; default: 4000, with --quick 2000")
    parser.add_argument("--rounds", type=int, default=3, help="rounds after each start; default: %(default)s")
    parser.add_argument("--starts", type=int, default=3, help="how often peers are started; default: %(default)s")
    parser.add_argument("--cases", default="", help="only cases whose name matches this expression")
    parser.add_argument("--peers", default="", help="only these, separated by commas")
    parser.add_argument("--before", metavar="REV", help="also the gateway of this commit; with --quick default HEAD~1")
    parser.add_argument("--python", help="what the gateway runs on; default: an optimised one, if there is one")
    parser.add_argument("--quick", action="store_true", help="three cases on gateway, before and Envoy")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    if options.quick:
        options.before = options.before or "HEAD~1"
    return options


def _choose_peers(options: argparse.Namespace) -> tuple[str, ...]:
    if options.peers:
        return tuple(options.peers.split(","))
    here = available()
    names = QUICK_PEERS if options.quick else PEERS
    return tuple(name for name in names if (options.before if name == "before" else name in (*here, COMPILED, COPY)))


def _measure_all(options: argparse.Namespace, setting: Setting) -> dict[str, str]:
    """Return the tables of the cases that were chosen, by the part of the page."""
    count = options.requests or (2000 if options.quick else 4000)
    chosen = [
        case for case in cases(count) if re.search(options.cases, case.name) and (case.is_quick or not options.quick)
    ]
    kinds = [kind for kind in half_load.KINDS if re.search(options.cases, f"{kind} at half load") and not options.quick]
    found = {}
    if chosen:
        found[page.SMALL] = table(chosen, run(chosen, setting), setting.peers)
    if kinds:
        peers = tuple(name for name in setting.peers if name in _HALF_LOAD_PEERS)
        half = half_load.run(
            kinds, replace(setting, peers=peers), count=count, slices=_HALF_LOAD_SLICES, seconds=_HALF_LOAD_SECONDS
        )
        found[page.HALF_LOAD] = f"{half_load.describe_slices(half)}\n\n{half_load.table(half, peers)}"
    return found


def main() -> int:
    """Run what the command line asks for."""
    exit_on_sigterm()
    options = _parse()
    if (reason := missing()) is not None:
        print(f"bench: no small requests, because {reason}", file=sys.stderr)
        return 0
    began, used = time.monotonic(), Usage.now()
    build = describe_python(options.python) if options.python else choose()
    peers = _choose_peers(options)
    with contextlib.ExitStack() as stack:
        tree = stack.enter_context(checkout(options.before)) if options.before else ROOT
        compiled = stack.enter_context(compiled_tree(build)) if COMPILED in peers else None
        if compiled is None:
            peers = tuple(name for name in peers if name != COMPILED)
        for name, path in (("gateway", ROOT), ("before", tree)):
            if name in peers:
                found = check_import(path, build.python)
                print(f"{name}: {describe(path)} ({found})", file=sys.stderr, flush=True)
        setting = Setting(peers, build.python, tree, compiled or ROOT, options.starts, options.rounds)
        tables = _measure_all(options, setting)
    others = describe_others(used)
    for part, text in tables.items():
        rounds = f" with {options.rounds} rounds each" if part == page.SMALL else ""
        heading = f"{build}; medians of {options.starts} starts{rounds}; {others}."
        print(f"{heading}\n\n{text}\n")
        if options.write:
            page.write(part, f"{heading}\n\n{text}")
    print(f"bench: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run the benchmark of workers: one process, two workers, two gateways; print tables, or write them down.

`share` is the CPU time of the busier process over that of all that serve. `PSS` is the memory of such a process after
the work, with its share of what it has in common with others. CPU is that of all processes (supervisor, template,
workers) on a core of their own. Rate and share are those on all cores, with clients and upstreams in one process
beside the gateway, which limits the rates on a small machine.

A process that has more connections serves more requests per wake-up, so that each costs less. With the same clients
each of two workers has half of the connections; in the rows "8 connections per process" each process has as many.

Two busy processes on one core take its caches from each other, whatever they share: "1 + 1" is two gateways with one
process each, side by side, with the same clients as two workers. What two workers cost more than these is the cost of
workers. "In turns" is without that effect: clients send requests to one process, then to the other.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import load, supervisor
from tests.bench.before import ROOT
from tests.bench.interpreter import choose
from tests.bench.peers import Peer, cores_apart, cpu_seconds, exit_on_sigterm, run_peer
from tests.bench.supervisor import REQUEST, wait_workers
from tests.bench.turns import ask_in_turns

PAGE = ROOT / "docs" / "scaling.md"
_BEGIN, _END = "<!-- begin: written by `make bench` -->", "<!-- end -->"
GB = 10**9
#: The workers of each gateway, by what the tables show.
SETUPS: Mapping[str, Sequence[int]] = {"1": [1], "2": [2], "1 + 1": [1, 1]}
_UPLOADS = 8
_SCRAPES = 10
_IDLE_SECONDS = 5.0


@dataclass(frozen=True)
class Setup:
    """Gateways that get the same work together."""

    name: str
    peers: Sequence[Peer]

    def servers(self) -> list[int]:
        """Return the processes that serve."""
        # After supervisor and template; or the only one.
        return [pid for peer in self.peers for pid in peer.pids()[2:] or [peer.pid]]

    def pids(self) -> list[int]:
        """Return all processes."""
        return [pid for peer in self.peers for pid in peer.pids()]

    def ask_each(self, ask: Callable[[int], object]) -> None:
        """Call this with the port of each, at once."""
        with ThreadPoolExecutor(len(self.peers)) as threads:
            list(threads.map(ask, [peer.port for peer in self.peers]))


@dataclass(frozen=True)
class Case:
    """One kind of work. `size` is in bytes for uploads, in requests for others."""

    name: str
    work: Callable[[Setup], object]
    size: int
    is_small: bool


@dataclass
class Cost:
    """What one case cost with one number of workers, per round."""

    cpu: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)
    pss: list[float] = field(default_factory=list)


#: By the names of case and setup.
Costs = dict[tuple[str, str], Cost]


def cases(size: int, requests: int) -> list[Case]:
    """Return the cases: eight uploads of `size` bytes each, and this many small requests."""

    def small(setup: Setup, connections: int) -> None:
        count = len(setup.peers)
        setup.ask_each(lambda port: load.ask_small(port, REQUEST, requests // count, connections // count))

    def upload(setup: Setup, ask: Callable[..., None]) -> None:
        count = _UPLOADS // len(setup.peers)
        setup.ask_each(lambda port: load.at_once(count, functools.partial(ask, size=size), port))

    def small_per_process(setup: Setup) -> None:
        small(setup, 8 * len(setup.servers()))

    def in_turns(setup: Setup) -> None:
        ask_in_turns(setup.peers, REQUEST, requests, 8 * len(setup.servers()))

    return [
        Case("small GET, 8 connections", lambda setup: small(setup, 8), requests, is_small=True),
        Case("small GET, 8 connections per process", small_per_process, requests, is_small=True),
        Case("small GET, 8 connections per process, in turns", in_turns, requests, is_small=True),
        Case("small GET, 64 connections", lambda setup: small(setup, 64), requests, is_small=True),
        Case("raw upload, 8 at once", lambda setup: upload(setup, load.ask_upload), _UPLOADS * size, is_small=False),
        Case("multipart, 8 at once", lambda setup: upload(setup, load.ask_form), _UPLOADS * size, is_small=False),
    ]


def measure(setup: Setup, case: Case, cost: Cost) -> None:
    """Do the work twice and record what it cost: on all cores, and on one with the clients on another."""
    spent, seconds = _spend(setup, case)
    of_servers = [spent[pid] for pid in setup.servers()]
    cost.rate.append(case.size / seconds)
    cost.share.append(max(of_servers) / sum(of_servers))
    cost.pss.append(statistics.mean(map(_pss_bytes, setup.servers())))
    with cores_apart(*setup.peers):
        spent, _ = _spend(setup, case)
    cost.cpu.append(sum(spent.values()) / (case.size / (1000 if case.is_small else GB)))


def _spend(setup: Setup, case: Case) -> tuple[dict[int, float], float]:
    """Do the work; return the CPU seconds of each process, and the seconds it took."""
    before = {pid: cpu_seconds(pid) for pid in setup.pids()}
    began = time.perf_counter()
    case.work(setup)
    seconds = time.perf_counter() - began
    return {pid: cpu_seconds(pid) - earlier for pid, earlier in before.items()}, seconds


def run(chosen: list[Case], rounds: int, python: str = sys.executable) -> Costs:
    """Run every case on every setup, round by round, the order turned around each time."""
    costs: Costs = {}
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        up = stack.enter_context(load.upstream())

        def start(count: int) -> Peer:
            settings = {"workers": count}
            peer = stack.enter_context(run_peer("gateway", up, Path(directory), settings=settings, python=python))
            wait_workers(peer, count)
            return peer

        setups = [Setup(name, [start(count) for count in counts]) for name, counts in SETUPS.items()]
        for number in range(rounds):
            for case in chosen:
                for setup in setups if number % 2 else reversed(setups):
                    measure(setup, case, costs.setdefault((case.name, setup.name), Cost()))
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return costs


def table(chosen: list[Case], costs: Costs) -> str:
    """Return the medians, and the CPU in relation to that of one process, as Markdown."""
    lines = ["| case | workers | CPU | x one | rate | share | PSS MiB per worker |", "|---|---|---|---|---|---|---|"]
    for case in chosen:
        for setup in SETUPS:
            cost, base = costs[case.name, setup], costs[case.name, "1"]
            # Of the rounds: both run on the machine in the same state.
            ratio = statistics.median(own / one for own, one in zip(cost.cpu, base.cpu, strict=True) if one)
            rate = statistics.median(cost.rate)
            speed = f"{rate:.0f} req/s" if case.is_small else f"{rate / 1e6:.0f} MB/s"
            unit = "s/1000" if case.is_small else "s/GB"
            lines.append(
                f"| {case.name} | {setup} | {statistics.median(cost.cpu):.3f} {unit} | {ratio:.2f} | {speed} "
                f"| {statistics.median(cost.share):.2f} | {statistics.median(cost.pss) / 2**20:.0f} |"
            )
    return "\n".join(lines)


def _pss_bytes(pid: int) -> int:
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found is not None else 0


def main() -> int:
    """Run what the command line asks for."""
    exit_on_sigterm()
    parser = argparse.ArgumentParser(prog="bench.workers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=GB // 4, help="bytes of each of 8 uploads; default: %(default)s")
    parser.add_argument("--requests", type=int, default=6400, help="small requests a round; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--only", default="", help="cases whose name has this text, without limits and scrapes")
    parser.add_argument("--write", action="store_true", help="write docs/scaling.md; not with --only")
    options = parser.parse_args()
    if options.only and options.write:
        parser.error("--write needs all cases")
    chosen = [case for case in cases(options.size, options.requests) if options.only in case.name]
    began, build = time.monotonic(), choose()
    tables = [table(chosen, run(chosen, options.rounds, build.python))]
    if not options.only:
        tables += [
            supervisor.limit_table(supervisor.run_limits(options.requests // 4, options.rounds, build.python)),
            supervisor.scrape_table(supervisor.run_scrape(_SCRAPES, _IDLE_SECONDS, build.python)),
        ]
    text = "\n\n".join(tables)
    print(text)
    if options.write:
        head, _, rest = PAGE.read_text().partition(_BEGIN)
        where = f"{build}; {os.cpu_count()} cores, loopback, medians of {options.rounds} rounds."
        PAGE.write_text(f"{head}{_BEGIN}\n\n{where}\n\n{text}\n\n{_END}{rest.partition(_END)[2]}")
    print(f"bench: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""CPU of two workers beside that of one process, with all processes of the gateway on one core and clients on another.

Two busy processes on one core take its caches from each other, whatever they share. So two workers are compared with
two gateways of one process each as well, side by side on that core with the same clients. "In turns" is without that
effect: the clients of one process send, then those of the other, as if each had a core of its own.

A process that has more connections serves more requests per wake-up, so that each costs less. With the same clients
each of two processes has half of the connections; in the cases "per process" each has as many.

Every round starts all processes anew: two processes of one program differ by more than two measurements of one. Within
a round the setups take turns, each with a part of the work at a time, so that a machine that gets slower or faster
changes all of them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import socket
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.bench import load
from tests.bench.generator import Generator, run_generator
from tests.bench.peers import cores_apart
from tests.bench.setups import GATEWAYS, ONE, TWO, Setup, connect, run_setups
from tests.bench.supervisor import REQUEST

AT_ONCE, IN_TURNS = "at once", "in turns"
#: What is measured in each case. One process is alone with its clients in any case.
WAYS = ((ONE, AT_ONCE), (TWO, AT_ONCE), (GATEWAYS, AT_ONCE), (TWO, IN_TURNS), (GATEWAYS, IN_TURNS))
#: Of a round; at least 2, for both orders.
_PARTS = 4
_UPLOADS = 8
#: Requests of each connection before anything is measured.
_FIRST_REQUESTS = 4

Socks = Sequence[socket.socket]
#: Sends a body of this many bytes on a connection.
SendBody = Callable[[socket.socket, int], object]
#: CPU seconds of the rounds, by case, setup and way.
Costs = dict[tuple[str, str, str], list[float]]


@dataclass(frozen=True)
class Case:
    """One kind of work. `size` is that of a round, in bytes for uploads, in requests for others."""

    name: str
    size: int
    connections: int
    is_per_process: bool = False
    #: None for small requests.
    send_body: SendBody | None = None
    #: Into which the work of a round is divided.
    parts: int = _PARTS

    @property
    def part(self) -> int:
        """The size of a part of a round."""
        return self.size // self.parts

    def count_connections(self, setup: Setup) -> int:
        """Return how many connections the clients have."""
        return self.connections * (len(setup.servers()) if self.is_per_process else 1)


def cases(size: int, requests: int, parts: int = _PARTS) -> list[Case]:
    """Return the cases: eight uploads of `size` bytes each, and this many small requests."""
    case = functools.partial(Case, parts=parts)
    total = _UPLOADS * size
    return [
        case("small GET, 8 connections", requests, 8),
        case("small GET, 8 connections per process", requests, 8, is_per_process=True),
        case("small GET, 64 connections", requests, 64),
        case("small GET, 64 connections per process", requests, 64, is_per_process=True),
        case("raw upload, 8 at once", total, _UPLOADS, send_body=load.send_upload),
        case("raw upload, 8 at once per process", total, _UPLOADS, is_per_process=True, send_body=load.send_upload),
        case("multipart, 8 at once", total, _UPLOADS, send_body=load.send_form),
        case("multipart, 8 at once per process", total, _UPLOADS, is_per_process=True, send_body=load.send_form),
    ]


def run(chosen: Sequence[Case], rounds: int, python: str = sys.executable) -> Costs:
    """Run every case in every way, round by round."""
    costs: Costs = {}
    with load.upstream() as up, run_generator() as generator:
        for number in range(rounds):
            run_round(chosen, up, generator, costs, python)
            print(f"CPU: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return costs


def run_round(chosen: Sequence[Case], up: int, generator: Generator, costs: Costs, python: str) -> None:
    """Start all processes and run every case in every way. Bodies go to port `up`, small requests to the generator."""
    settings = _two_upstreams(generator.port, up)
    with (
        run_setups(up, python, settings) as setups,
        cores_apart(*(peer for setup in setups for peer in setup.peers)),
    ):
        for case in chosen:
            with contextlib.ExitStack() as stack:
                if case.send_body is None:
                    measure = _measure_small(case, setups, generator, stack)
                else:
                    measure = functools.partial(_measure_bodies, case.send_body, case)
                for key, seconds in _take_turns(case, setups, measure).items():
                    costs.setdefault((case.name, *key), []).append(seconds)


def _two_upstreams(small: int, bodies: int) -> dict[str, object]:
    ports = {"small": small, "bodies": bodies}
    limits = {"max_body": "100GiB", "max_part": "50GiB"}
    prefixes = {"small": "/", "bodies": "/up"}
    return {
        "upstreams": {name: {"endpoints": [f"http://127.0.0.1:{port}"]} for name, port in ports.items()},
        "routes": [
            {"name": name, "match": {"prefix": prefix}, "forward": {"upstream": name}, "limits": limits}
            for name, prefix in prefixes.items()
        ],
    }


#: Does a part of the work of a case on a setup in a way; returns the CPU seconds it took.
_Measure = Callable[[Setup, str], float]


def _take_turns(case: Case, setups: Sequence[Setup], measure: _Measure) -> dict[tuple[str, str], float]:
    """Return the CPU seconds of all parts, by setup and way. The first part is not measured."""
    by_name = {setup.name: setup for setup in setups}
    for setup in setups:
        measure(setup, AT_ONCE)
    spent = dict.fromkeys(WAYS, 0.0)
    for part in range(case.parts):
        for name, way in WAYS if part % 2 else reversed(WAYS):
            spent[name, way] += measure(by_name[name], way)
    return spent


def _measure_small(case: Case, setups: Sequence[Setup], generator: Generator, stack: contextlib.ExitStack) -> _Measure:
    """Open the connections, which are closed with the stack; return what sends requests on them."""
    groups = {setup.name: stack.enter_context(connect(setup, case.count_connections(setup))) for setup in setups}

    def measure(setup: Setup, way: str) -> float:
        return _spend(
            setup, way, groups[setup.name], lambda socks, share: generator.run_on(socks, REQUEST, case.part // share)
        )

    return measure


def _measure_bodies(send_body: SendBody, case: Case, setup: Setup, way: str) -> float:
    """Open connections and send one body on each, of one size in every setup: the beginning of a body costs more."""

    def send(socks: Socks, _share: int) -> None:
        with ThreadPoolExecutor(len(socks)) as clients:
            list(clients.map(lambda sock: send_body(sock, case.part // case.connections), socks))

    count = case.count_connections(setup)
    with connect(setup, count) as groups:
        return _spend(setup, way, groups, send) * case.connections / count


def _spend(setup: Setup, way: str, groups: Sequence[Socks], send: Callable[[Socks, int], object]) -> float:
    """Send over the connections of all processes at once, or in turns; return the CPU seconds it took.

    `send` gets connections, and by what the work is to be divided.
    """
    before = setup.cpu_seconds()
    for socks in groups if way == IN_TURNS else [list(itertools.chain(*groups))]:
        send(socks, len(groups) if way == IN_TURNS else 1)
    return sum(setup.cpu_seconds().values()) - sum(before.values())


def table(chosen: Sequence[Case], costs: Costs) -> str:
    """Return the CPU of one process, and that of others in relation to it, as Markdown: medians, lowest and highest."""
    heads = ["one process", "two workers", "two gateways", "two workers, in turns", "two gateways, in turns"]
    lines = [f"| CPU | {' | '.join(heads)} |", "|---" * (len(WAYS) + 1) + "|"]
    for case in chosen:
        one, *others = (costs[case.name, *way] for way in WAYS)
        cells = [_show_cost(case, statistics.median(one))]
        for seconds in others:
            # Of the rounds: both ran on the machine in the same state.
            ratios = [own / base for own, base in zip(seconds, one, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
        lines.append(f"| {case.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _show_cost(case: Case, seconds: float) -> str:
    each = seconds / (case.part * case.parts)
    return f"{each * 1e6:.1f} us" if case.send_body is None else f"{each * 1e9:.3f} s/GB"

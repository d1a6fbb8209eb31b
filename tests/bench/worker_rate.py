"""What workers reach on all cores: requests or bytes per second, the share of the busier process, and memory.

Clients and upstreams are in one process beside the gateway, which limits the rates on a small machine.
"""

from __future__ import annotations

import functools
import re
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import load
from tests.bench.setups import SETUPS, Setup, run_setups
from tests.bench.supervisor import REQUEST
from tests.bench.worker_cpu import Case, SendBody


@dataclass
class Rate:
    """What one case reached with one setup, per round."""

    #: Requests or bytes per second.
    rate: list[float] = field(default_factory=list)
    #: CPU of the busier process over that of all that serve.
    share: list[float] = field(default_factory=list)
    #: Memory of each process, with its share of what it has in common with others.
    pss: list[float] = field(default_factory=list)


#: By case and setup.
Rates = dict[tuple[str, str], Rate]


def run(chosen: Sequence[Case], rounds: int, python: str = sys.executable) -> Rates:
    """Run every case on every setup, round by round, the order turned around each time."""
    rates: Rates = {}
    with load.upstream() as up, run_setups(up, python) as setups:
        for number in range(rounds):
            for case in chosen:
                for setup in setups if number % 2 else reversed(setups):
                    _measure(setup, case, rates.setdefault((case.name, setup.name), Rate()))
            print(f"rates: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return rates


def _measure(setup: Setup, case: Case, found: Rate) -> None:
    before, began = setup.cpu_seconds(), time.perf_counter()
    with ThreadPoolExecutor(len(setup.peers)) as threads:
        list(threads.map(functools.partial(_send, setup, case), [peer.port for peer in setup.peers]))
    seconds, after = time.perf_counter() - began, setup.cpu_seconds()
    of_servers = [after[pid] - before[pid] for pid in setup.servers()]
    found.rate.append(case.size / seconds)
    found.share.append(max(of_servers) / sum(of_servers))
    found.pss.append(statistics.mean(map(_pss_bytes, setup.servers())))


def _send(setup: Setup, case: Case, port: int) -> None:
    """Send the part of the work that one gateway gets."""
    connections = case.count_connections(setup) // len(setup.peers)
    size = case.size // len(setup.peers)
    if case.send_body is None:
        load.ask_small(port, REQUEST, size, connections)
    else:
        load.at_once(connections, functools.partial(_send_body, case.send_body, size // connections), port)


def _send_body(send: SendBody, size: int, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        send(sock, size)


def table(chosen: Sequence[Case], rates: Rates) -> str:
    """Return the medians as Markdown."""
    lines = ["| all cores | workers | rate | share | PSS MiB per worker |", "|---|---|---|---|---|"]
    for case in chosen:
        for setup in SETUPS:
            found = rates[case.name, setup]
            rate, share = statistics.median(found.rate), statistics.median(found.share)
            speed = f"{rate:.0f} req/s" if case.send_body is None else f"{rate / 1e6:.0f} MB/s"
            pss = statistics.median(found.pss) / 2**20
            lines.append(f"| {case.name} | {setup} | {speed} | {share:.2f} | {pss:.0f} |")
    return "\n".join(lines)


def _pss_bytes(pid: int) -> int:
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found is not None else 0

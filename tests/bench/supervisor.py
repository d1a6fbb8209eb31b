"""What the supervisor costs: limits that hold over all workers, scrapes, and its work without requests."""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import load
from tests.bench.peers import Peer, cores_apart, cpu_seconds, run_peer
from tests.ports import free_port

REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
COUNTS = (1, 2)
#: `max_in_flight`; the first is what others are compared with. With 16 each client has a slot, with 4 half of them.
LIMITS = ("unlimited", "16", "4")
_CLIENTS = 8
_ROUTES = 50


def wait_workers(peer: Peer, count: int) -> None:
    """Wait until all workers serve: the port is open before that, and the first of them would get all connections."""
    deadline = time.monotonic() + 20
    while count > 1 and (peer.access_log is None or b"processes:" not in peer.access_log.read_bytes()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all of {count} workers serve after 20 s")
        time.sleep(0.05)


@dataclass
class LimitCost:
    """Per round: CPU seconds for 1000 requests, and the median of the seconds that each took."""

    cpu: list[float] = field(default_factory=list)
    median: list[float] = field(default_factory=list)


LimitCosts = dict[tuple[int, str], LimitCost]


def run_limits(requests: int, rounds: int, python: str = sys.executable) -> LimitCosts:
    """Send small requests through gateways with several `max_in_flight`, with one process and with two workers."""
    costs: LimitCosts = {}
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        up = stack.enter_context(load.upstream())
        peers = []
        for count in COUNTS:
            for limit in LIMITS:
                upstreams = {"up": {"endpoints": [f"http://127.0.0.1:{up}"], "max_in_flight": limit}}
                settings = {"workers": count, "upstreams": upstreams}
                running = run_peer("gateway", up, Path(directory), settings=settings, python=python)
                peers.append(((count, limit), stack.enter_context(running)))
        for (count, _), peer in peers:
            wait_workers(peer, count)
        for number in range(rounds):
            for key, peer in peers if number % 2 else reversed(peers):
                cost = costs.setdefault(key, LimitCost())
                with cores_apart(peer):
                    before = peer.cpu_seconds()
                    taken = load.ask_small(peer.port, REQUEST, requests, _CLIENTS)
                    cost.cpu.append((peer.cpu_seconds() - before) / (requests / 1000))
                cost.median.append(statistics.median(taken))
            print(f"limits: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return costs


def limit_table(costs: LimitCosts) -> str:
    """Return the medians, and the CPU in relation to that without a limit, as Markdown."""
    lines = [
        f"| small GET, {_CLIENTS} connections, `max_in_flight` | workers | CPU | x unlimited | median of a request |",
        "|---|---|---|---|---|",
    ]
    for limit in LIMITS:
        for count in COUNTS:
            cost, base = costs[count, limit], costs[count, LIMITS[0]]
            ratio = statistics.median(own / one for own, one in zip(cost.cpu, base.cpu, strict=True) if one)
            cpu, median = statistics.median(cost.cpu), 1000 * statistics.median(cost.median)
            lines.append(f"| {limit} | {count} | {cpu:.3f} s/1000 | {ratio:.2f} | {median:.1f} ms |")
    return "\n".join(lines)


@dataclass(frozen=True)
class ScrapeCost:
    """The medians of scrapes, and the CPU seconds of each second without requests and scrapes."""

    #: The seconds of a scrape and the CPU seconds of the supervisor for it: after no request, after one on each route.
    idle: tuple[float, float]
    busy: tuple[float, float]
    supervisor: float
    worker: float


def run_scrape(scrapes: int, idle_seconds: float, python: str = sys.executable) -> ScrapeCost:
    """Scrape a gateway with four workers and 50 routes, then leave it alone."""
    ops = free_port()
    with tempfile.TemporaryDirectory() as directory, load.upstream() as up:
        settings = {"workers": 4, "ops": {"listen": f"127.0.0.1:{ops}"}, **_many_routes(up)}
        with run_peer("gateway", up, Path(directory), settings=settings, python=python) as peer:
            wait_workers(peer, 4)
            taken: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
            for is_busy, costs in taken.items():
                for _ in range(scrapes):
                    for number in range(_ROUTES if is_busy else 0):
                        load.ask_small(peer.port, REQUEST.replace(b"/", b"/%d/" % number, 1), 1, 1)
                    costs.append(_scrape(peer, ops))
            before = {pid: cpu_seconds(pid) for pid in peer.pids()}
            time.sleep(idle_seconds)
            supervisor, _, *workers = [(cpu_seconds(pid) - cpu) / idle_seconds for pid, cpu in before.items()]
    idle, busy = ((_median(costs, 0), _median(costs, 1)) for costs in taken.values())
    return ScrapeCost(idle, busy, supervisor, statistics.median(workers))


def scrape_table(cost: ScrapeCost) -> str:
    """Return what scrapes cost as Markdown."""
    rows = [
        f"| scrape after {what} | {1000 * seconds:.0f} ms | {1000 * cpu:.0f} ms of the supervisor |"
        for what, (seconds, cpu) in (("no request", cost.idle), ("a request on each route", cost.busy))
    ]
    cpu = f"{1000 * cost.supervisor:.1f} ms of the supervisor, {1000 * cost.worker:.1f} ms of each worker"
    head = [f"| 4 workers, {_ROUTES} routes | takes | CPU |", "|---|---|---|"]
    return "\n".join([*head, *rows, f"| no request for a second | | {cpu} |"])


def _median(costs: list[tuple[float, float]], place: int) -> float:
    return statistics.median(cost[place] for cost in costs)


def _many_routes(up: int) -> dict[str, object]:
    upstreams = {f"u{number}": {"endpoints": [f"http://127.0.0.1:{up}"]} for number in range(_ROUTES // 5)}
    routes = [
        {
            "name": f"r{number}",
            "match": {"prefix": f"/{number}/"},
            "forward": {"upstream": f"u{number % len(upstreams)}"},
        }
        for number in range(_ROUTES)
    ]
    return {"upstreams": upstreams, "routes": routes}


def _scrape(peer: Peer, ops: int) -> tuple[float, float]:
    """Scrape; return the seconds it took, and the CPU seconds of the supervisor."""
    cpu, began = cpu_seconds(peer.pid), time.perf_counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{ops}/metrics") as response:
        response.read()
    return time.perf_counter() - began, cpu_seconds(peer.pid) - cpu

"""Run the benchmark: every case on every peer, rounds interleaved, medians and ratios printed and written down."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import load
from tests.bench.peers import Peer, available, cores_apart, run_peer

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
_BEGIN, _END = "<!-- begin: written by `make bench` -->", "<!-- end -->"
GB = 10**9


@dataclass(frozen=True)
class Case:
    """One kind of work. `work` gets the port and returns latencies for small requests, None for bodies."""

    name: str
    work: Callable[[int], list[float] | None]
    size: int
    #: Peers that can do it.
    peers: frozenset[str]
    has_tls: bool = False
    #: Whether the proxy has a core of its own, and clients and upstreams another.
    is_apart: bool = False


@dataclass
class Cost:
    """What one peer paid for one case, per round."""

    cpu: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    peak: int = 0


ALL = frozenset({"gateway", "naive", "nginx", "haproxy", "envoy"})
#: With what the ground costs beside them, see `alone`.
KERNEL, AIOHTTP = frozenset({"kernel alone"}), frozenset({"aiohttp alone"})
#: What a digest adds is told over a form at the same pace, slow enough for one core to do both.
_PACE = 0.8e9
OURS = frozenset({"gateway"})
REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
_SMALL_BODY = load.FORM_HEAD + b"x" * 1000 + load.FORM_TAIL
SMALL_FORM = (
    b"POST /up HTTP/1.1\r\nHost: bench\r\n" + load.FORM_TYPE + b"Content-Length: %d\r\n\r\n" % len(_SMALL_BODY)
) + _SMALL_BODY


def cases(size: int, requests: int) -> list[Case]:
    """Return the cases, bodies of `size` bytes and so many small requests."""

    def wrap(ask: Callable[..., None], *rest: object) -> Callable[[int], None]:
        return lambda port: ask(port, *rest)

    eighth = size // 8
    return [
        Case("raw upload", wrap(load.ask_upload, size), size, ALL | KERNEL),
        Case("multipart upload", wrap(load.ask_form, size), size, ALL),
        Case("multipart, 8 at once", lambda port: load.at_once(8, wrap(load.ask_form, eighth), port), eighth * 8, ALL),
        Case("raw, 8 at once", lambda port: load.at_once(8, wrap(load.ask_upload, eighth), port), eighth * 8, ALL),
        Case("chunked multipart", wrap(load.ask_chunked_form, size), size, ALL),
        Case("multipart over TLS", wrap(load.ask_form_over_tls, size), size, ALL - {"envoy"}, has_tls=True),
        Case("download", wrap(load.ask_download, size), size, ALL | KERNEL),
        Case("files", wrap(load.ask_download, size, b"/files/big.bin"), size, OURS | {"nginx"} | KERNEL),
        Case("raw, 8 times the size", wrap(load.ask_upload, size * 8), size * 8, OURS),
        Case("multipart, 8 times the size", wrap(load.ask_form, size * 8), size * 8, OURS),
        Case("download, 8 times the size", wrap(load.ask_download, size * 8), size * 8, OURS),
        Case("split, 8 files", wrap(load.ask_files, size), size, OURS),
        Case("multipart, digest on", wrap(load.ask_form, size, b"/digest"), size, OURS),
        Case("at 0.8 GB/s, cores apart", wrap(load.ask_form, size, b"/up", _PACE), size, OURS, is_apart=True),
        Case("the same, digest on", wrap(load.ask_form, size, b"/digest", _PACE), size, OURS, is_apart=True),
        Case("multipart, sniff on", wrap(load.ask_form, size, b"/sniff"), size, OURS),
        Case("SHA-256 alone", wrap(load.hash_alone, size), size, frozenset({"this process"})),
        Case("store", wrap(load.ask_form, size, b"/store"), size, OURS | KERNEL),
        Case("small GET", functools.partial(_small, REQUEST, requests), requests, ALL | AIOHTTP),
        Case("small multipart", functools.partial(_small, SMALL_FORM, requests), requests, ALL),
    ]


def _small(request: bytes, count: int, port: int) -> list[float]:
    return load.ask_small(port, request, count, 8)


def measure(peer: Peer, case: Case, cost: Cost) -> None:
    """Do the work once and note what it cost."""
    with cores_apart(peer) if case.is_apart else contextlib.nullcontext():
        cpu, began = peer.cpu_seconds(), time.perf_counter()
        latencies = case.work(peer.port)
        seconds = time.perf_counter() - began
        spent = peer.cpu_seconds() - cpu
    if latencies is None:
        cost.cpu.append(spent / (case.size / GB))
        cost.rate.append(case.size / 1e6 / seconds)
    else:
        cost.cpu.append(spent / (case.size / 1000))
        cost.rate.append(case.size / seconds)
        cost.p50.append(latencies[len(latencies) // 2] * 1000)
        cost.p99.append(latencies[len(latencies) * 99 // 100] * 1000)
    cost.peak = max(cost.peak, peer.peak_bytes())


Costs = dict[tuple[str, str], Cost]


def run(chosen: list[Case], peers: list[str], rounds: int) -> Costs:
    """Run every case on every peer, round by round, so that a slow minute hits them all."""
    costs: Costs = {}
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        os.chmod(directory, 0o755)
        files = Path(directory)
        block = os.urandom(2**20)
        with (files / "big.bin").open("wb") as file:
            for size in (case.size for case in chosen if case.name == "files"):
                for _ in range(-(-size // len(block))):
                    file.write(block)
                file.truncate(size)
        certificate = load.make_certificate(files)
        up, up_tls = stack.enter_context(load.upstream()), stack.enter_context(load.upstream(certificate))
        here = Peer("this process", 0, os.getpid())
        running = [(stack.enter_context(run_peer(name, up, files)), False) for name in peers]
        if any(case.has_tls for case in chosen):
            speaking = [name for name in peers if name != "envoy" and not name.endswith(" alone")]
            running += [(stack.enter_context(run_peer(name, up_tls, files, certificate)), True) for name in speaking]
        running.append((here, False))
        for number in range(rounds):
            # Whoever comes first meets the machine as the case before left it: each does so in its turn.
            turn = number % len(running)
            for case in chosen:
                for peer, has_tls in [*running[turn:], *running[:turn]]:
                    if peer.name in case.peers and has_tls is case.has_tls:
                        measure(peer, case, costs.setdefault((case.name, peer.name), Cost()))
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return costs


def table(chosen: list[Case], costs: Costs) -> str:
    """Return the medians, and the ratios to nginx, as Markdown."""
    lines = ["| case | proxy | CPU | x nginx | rate | p50 / p99 ms | peak MiB |", "|---|---|---|---|---|---|---|"]
    for case in chosen:
        base = costs.get((case.name, "nginx"))
        for (name, peer), cost in costs.items():
            if name != case.name:
                continue
            cpu = statistics.median(cost.cpu)
            ratio = f"{cpu / statistics.median(base.cpu):.2f}" if base and statistics.median(base.cpu) else "-"
            unit, speed = ("s/1000", "req/s") if cost.p50 else ("s/GB", "MB/s")
            late = f"{statistics.median(cost.p50):.2f} / {statistics.median(cost.p99):.2f}" if cost.p50 else "-"
            lines.append(
                f"| {name} | {peer} | {cpu:.3f} {unit} | {ratio} | {statistics.median(cost.rate):.0f} {speed} "
                f"| {late} | {cost.peak / 2**20:.0f} |"
            )
    return "\n".join(lines)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--size", type=int, default=GB, help="bytes of a body")
    parser.add_argument("--requests", type=int, default=4000, help="small requests a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--peers", default="", help="only these, separated by commas")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    chosen = [case for case in cases(options.size, options.requests) if options.cases in case.name]
    peers = options.peers.split(",") if options.peers else available()
    text = table(chosen, run(chosen, peers, options.rounds))
    print(text)
    if options.write:
        head, _, rest = PAGE.read_text().partition(_BEGIN)
        where = (
            f"Python {platform.python_version()}, {os.cpu_count()} cores, loopback, medians of {options.rounds} rounds."
        )
        PAGE.write_text(f"{head}{_BEGIN}\n\n{where}\n\n{text}\n\n{_END}{rest.partition(_END)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

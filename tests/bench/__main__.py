"""Run the benchmark of bodies: every case on every peer, rounds interleaved; print medians and ratios, or write them.

`--quick` runs seven cases against nginx and the gateway of another commit, for the check before a commit; its table is
printed only. Small requests are measured by `small`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.bench import load, page
from tests.bench.before import ROOT, check_import, checkout, describe
from tests.bench.interpreter import choose
from tests.bench.machine import Usage, describe_others
from tests.bench.peers import Peer, Setting, available, cores_apart, exit_on_sigterm

GB = 10**9


@dataclass(frozen=True)
class Case:
    """One kind of work. `work` gets the port; `size` is in bytes."""

    name: str
    work: Callable[[int], None]
    size: int
    #: Peers that can do it.
    peers: frozenset[str]
    has_tls: bool = False
    #: Whether the proxy has a core of its own, and clients and upstreams another.
    is_apart: bool = False


@dataclass
class Cost:
    """What one case cost on one peer, per round: CPU seconds per GB, and MB per second."""

    cpu: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    peak: int = 0


ALL = frozenset({"gateway", "before", "naive", "nginx", "haproxy", "envoy"})
#: The lower bound, see `alone`.
KERNEL = frozenset({"kernel alone"})
#: The cost of a digest is measured against a form at the same rate (bytes/s), slow enough for one core to do both.
_PACE = 0.8e9
OURS = frozenset({"gateway", "before"})


def cases(size: int) -> list[Case]:
    """Return the cases, with bodies of `size` bytes."""

    def wrap(ask: Callable[..., None], *rest: object) -> Callable[[int], None]:
        return lambda port: ask(port, *rest)

    eighth = size // 8
    served = OURS | {"nginx"} | KERNEL
    return [
        Case("raw upload", wrap(load.ask_upload, size), size, ALL | KERNEL),
        Case("multipart upload", wrap(load.ask_form, size), size, ALL),
        Case("multipart, 8 at once", lambda port: load.at_once(8, wrap(load.ask_form, eighth), port), eighth * 8, ALL),
        Case("raw, 8 at once", lambda port: load.at_once(8, wrap(load.ask_upload, eighth), port), eighth * 8, ALL),
        Case("chunked multipart", wrap(load.ask_chunked_form, size), size, ALL),
        Case("multipart over TLS", wrap(load.ask_form_over_tls, size), size, ALL - {"envoy"}, has_tls=True),
        Case("download", wrap(load.ask_download, size), size, ALL | KERNEL),
        # Sendfile copies nothing: its cost is that of waking the client. On shared cores that is 0.1 to 0.3 s/GB by
        # chance, between two downloads from one process.
        Case("files", wrap(load.ask_download, size, b"/files/big.bin"), size, served, is_apart=True),
        # Of which the gateway remembers what it found in memory; in later rounds it does so for the case above as well.
        Case("files, once more", wrap(load.ask_download, size, b"/files/big.bin"), size, served, is_apart=True),
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
    ]


#: What `--quick` runs: one case of each way a body can take.
QUICK = (
    "raw upload",
    "multipart upload",
    "multipart, 8 at once",
    "chunked multipart",
    "download",
    "files",
    "files, once more",
)
QUICK_PEERS = ("gateway", "before", "nginx")
_QUICK_RUNS = 5


def measure(peer: Peer, case: Case, cost: Cost) -> None:
    """Do the work once and record what it cost."""
    with cores_apart(peer) if case.is_apart else contextlib.nullcontext():
        cpu, began = peer.cpu_seconds(), time.perf_counter()
        case.work(peer.port)
        seconds = time.perf_counter() - began
        spent = peer.cpu_seconds() - cpu
    cost.cpu.append(spent / (case.size / GB))
    cost.rate.append(case.size / 1e6 / seconds)
    cost.peak = max(cost.peak, peer.peak_bytes())


Costs = dict[tuple[str, str], Cost]


def run(chosen: list[Case], setting: Setting, *, is_quiet: bool = False) -> Costs:
    """Run every case on every peer, round by round, so that a slow minute hits them all."""
    costs: Costs = {}
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        os.chmod(directory, 0o755)
        files = Path(directory)
        block = os.urandom(2**20)
        with (files / "big.bin").open("wb") as file:
            for size in {case.size for case in chosen if case.name.startswith("files")}:
                for _ in range(-(-size // len(block))):
                    file.write(block)
                file.truncate(size)
        certificate = load.make_certificate(files)
        up, up_tls = stack.enter_context(load.upstream()), stack.enter_context(load.upstream(certificate))
        here = Peer("this process", 0, os.getpid())
        peers = [name for name in setting.peers if any(name in case.peers for case in chosen)]
        running = [(stack.enter_context(setting.run(name, up, files)), False) for name in peers]
        if any(case.has_tls for case in chosen):
            speaking = [name for name in peers if name != "envoy" and not name.endswith(" alone")]
            running += [(stack.enter_context(setting.run(name, up_tls, files, certificate)), True) for name in speaking]
        running.append((here, False))
        for number in range(setting.rounds):
            # The first peer runs on the machine as the case before left it: each peer is first in its turn.
            turn = number % len(running)
            for case in chosen:
                for peer, has_tls in [*running[turn:], *running[:turn]]:
                    if peer.name in case.peers and has_tls is case.has_tls:
                        measure(peer, case, costs.setdefault((case.name, peer.name), Cost()))
            if not is_quiet:
                _report_round(number, setting.rounds)
    return costs


def table(chosen: list[Case], costs: Costs) -> str:
    """Return the medians, and the ratios to nginx, as Markdown."""
    lines = ["| case | proxy | CPU | x nginx | rate | peak MiB |", "|---|---|---|---|---|---|"]
    for case in chosen:
        base = costs.get((case.name, "nginx"))
        for (name, peer), cost in costs.items():
            if name != case.name:
                continue
            cpu = statistics.median(cost.cpu)
            ratio = f"{cpu / statistics.median(base.cpu):.2f}" if base and statistics.median(base.cpu) else "-"
            lines.append(
                f"| {name} | {peer} | {cpu:.3f} s/GB | {ratio} | {statistics.median(cost.rate):.0f} MB/s "
                f"| {cost.peak / 2**20:.0f} |"
            )
    return "\n".join(lines)


def run_quick(chosen: list[Case], setting: Setting) -> Costs:
    """Run the cases on the gateway, on that of another commit and on nginx; return one cost per round.

    One round is several runs with new processes each, and its cost the median of them. Between two processes of the
    same program a case differs by up to 25 %, and between two runs of one process by 10 %; without both repetitions a
    comparison of a commit with itself showed 0.8 to 1.25, with them 0.96 to 1.04.
    """
    costs: Costs = {}
    for number in range(setting.rounds):
        runs: dict[tuple[str, str], list[Cost]] = {}
        for turn in range(_QUICK_RUNS):
            peers = (*QUICK_PEERS[turn % 3 :], *QUICK_PEERS[: turn % 3])
            for key, cost in run(chosen, replace(setting, peers=peers, rounds=1), is_quiet=True).items():
                runs.setdefault(key, []).append(cost)
        for key, of_round in runs.items():
            cost = costs.setdefault(key, Cost())
            cost.cpu.append(statistics.median(value for one in of_round for value in one.cpu))
            cost.rate.append(statistics.median(value for one in of_round for value in one.rate))
        _report_round(number, setting.rounds)
    return costs


def comparison(chosen: list[Case], costs: Costs) -> str:
    """Return the CPU of the gateway, `before` and nginx, and the ratios between them, as Markdown.

    A ratio is the median of the ratios of the rounds, with the smallest and the largest beside it: the peers of one
    round run on the machine in the same state, so their ratio is steadier than that of two medians.
    """
    lines = ["| case | gateway | before | nginx | gateway / nginx | gateway / before |", "|---|---|---|---|---|---|"]
    for case in chosen:
        own, before, nginx = (costs[case.name, peer] for peer in QUICK_PEERS)
        cpu = [f"{statistics.median(cost.cpu):.3f} s/GB" for cost in (own, before, nginx)]
        lines.append(f"| {' | '.join([case.name, *cpu, _ratio(own, nginx), _ratio(own, before)])} |")
    return "\n".join(lines)


def _ratio(own: Cost, other: Cost) -> str:
    # A tiny body may cost less than the clock of the kernel shows.
    ratios = [mine / theirs if theirs else float("nan") for mine, theirs in zip(own.cpu, other.cpu, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def _report_round(number: int, rounds: int) -> None:
    print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)


def _main_quick(chosen: list[Case], revision: str, rounds: int) -> None:
    python = choose().python
    with checkout(revision) as tree:
        for name, path in (("gateway", ROOT), ("before", tree)):
            print(f"{name}: {describe(path)} ({check_import(path, python)})", file=sys.stderr, flush=True)
        setting = Setting(QUICK_PEERS, python, tree, rounds=rounds)
        print(comparison(chosen, run_quick(chosen, setting)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, help="bytes of a body; default: 1 GB, with --quick 400 MB")
    parser.add_argument("--rounds", type=int, help="default: 5, with --quick 3")
    parser.add_argument("--cases", default="", help="only cases whose name matches this expression")
    parser.add_argument("--peers", default="", help="only these, separated by commas")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="seven cases, against nginx and the gateway of --before")
    parser.add_argument("--before", metavar="REV", default="HEAD~1", help="with --quick: a commit; default: HEAD~1")
    return parser.parse_args()


def main() -> int:
    """Run what the command line asks for."""
    exit_on_sigterm()
    options = _parse()
    began = time.monotonic()
    chosen = [
        case
        for case in cases(options.size or (400_000_000 if options.quick else GB))
        if re.search(options.cases, case.name) and (case.name in QUICK or not options.quick)
    ]
    if options.quick:
        _main_quick(chosen, options.before, options.rounds or 3)
        return 0
    build, rounds, used = choose(), options.rounds or 5, Usage.now()
    peers = tuple(options.peers.split(",")) if options.peers else tuple(available())
    text = table(chosen, run(chosen, Setting(peers, build.python, rounds=rounds)))
    text = f"{build}; {os.cpu_count()} cores, loopback, medians of {rounds} rounds; {describe_others(used)}.\n\n{text}"
    print(text)
    if options.write:
        page.write(page.BODIES, text)
    print(f"bench: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

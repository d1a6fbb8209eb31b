"""What storing a form costs beside hashing and writing its bytes one after the other.

The gateway receives the form, reads it part by part, hashes the file and writes it. This process hashes and writes as
many bytes, in turns with it, on the same disk: with the same calls (`write`, `posix_fadvise`, `fsync`, `rename`), in
steps of 1 MiB, on one thread. It is the client, too, on the same cores as the gateway: what that takes is a column of
its own.

A file is stored under a new name, or replaces one of the same size, which the kernel has to free: this process does so
before it goes on, the gateway after its response. What goes on after a row is waited for before the next begins.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import load, page
from tests.bench.before import ROOT
from tests.bench.interpreter import choose
from tests.bench.peers import Peer, run_peer

GB = 10**9
_ROUNDS = 5
_STEP_BYTES = 2**20
#: No request goes upstream.
_NO_UPSTREAM = 9
_FLUSH_BYTES = 8 * 2**20
_FADV = os.POSIX_FADV_DONTNEED
Work = Callable[[], None]
#: By its name in the table: of each round, seconds per GB that have passed, of the CPU, and of the client's CPU.
Costs = dict[str, list[tuple[float, float, float]]]
HASH = "SHA-256 alone"
WRITE, WRITE_OVER = "write and fsync alone", "the same, replacing a file"
STORE, STORE_OVER = "store", "store, replacing a file"
BLAKE3 = "store, `digest: {algorithm: blake3}`"
#: Of each row of the gateway, what it is compared with.
_APART = {STORE: (HASH, WRITE), STORE_OVER: (HASH, WRITE_OVER), BLAKE3: (HASH, WRITE)}
#: A process that took less than this within _REST_SECONDS is at rest.
_REST_CPU_SECONDS = 0.001
_REST_SECONDS = 0.05


def run(size: int, rounds: int, python: str, tree: Path = ROOT) -> Costs:
    """Measure every row, round by round, in alternating order."""
    costs: Costs = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with run_peer(
            "gateway", _NO_UPSTREAM, directory, settings={"routes": _routes(directory)}, tree=tree, python=python
        ) as peer:
            alone, stored = directory / "alone", directory / load.FILE_NAME
            rows: list[tuple[str, Peer | None, Path | None, Work]] = [
                (HASH, None, None, lambda: load.hash_alone(0, size)),
                (WRITE, None, alone, lambda: _write(alone, size)),
                (WRITE_OVER, None, None, lambda: _write(alone, size)),
                (STORE, peer, stored, lambda: load.ask_form(peer.port, size, b"/store")),
                (STORE_OVER, peer, None, lambda: load.ask_form(peer.port, size, b"/store")),
                (BLAKE3, peer, stored, lambda: load.ask_form(peer.port, size, b"/blake3")),
            ]
            for number in range(rounds + 1):
                for row, asked, removed, work in rows[:: 1 if number % 2 else -1]:
                    if removed is not None:
                        removed.unlink(missing_ok=True)
                    _wait_for_rest(peer)
                    cost = _measure(asked, work, size)
                    if number:
                        # The first round warms up.
                        costs.setdefault(row, []).append(cost)
    return costs


def table(costs: Costs) -> str:
    """Return the medians as Markdown. A ratio is the median of the ratios of the rounds."""
    lines = [
        "| row | wall s/GB | CPU s/GB | client's CPU s/GB | wall / (SHA-256 + write, one after the other) |",
        "|---|---|---|---|---|",
    ]
    for row in (HASH, WRITE, WRITE_OVER, STORE, STORE_OVER, BLAKE3):
        wall, cpu, client = map(statistics.median, zip(*costs[row], strict=True))
        asked = "- | -"
        if row in _APART:
            apart = [sum(cost[0] for cost in both) for both in zip(*map(costs.__getitem__, _APART[row]), strict=True)]
            ratios = [cost[0] / both for cost, both in zip(costs[row], apart, strict=True)]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            asked = f"{client:.3f} | {ratio}"
        lines.append(f"| {row} | {wall:.3f} | {cpu:.3f} | {asked} |")
    return "\n".join(lines)


def _routes(directory: Path) -> list[dict[str, Any]]:
    store = {"store": {"directory": str(directory), "if_exists": "replace"}}
    limits = {"max_body": "100GiB", "max_part": "50GiB"}
    return [
        {"name": "store", "match": {"prefix": "/store"}, **store, "limits": limits},
        {
            "name": "blake3",
            "match": {"prefix": "/blake3"},
            **store,
            "limits": limits,
            "filters": [{"digest": {"algorithm": "blake3"}}],
        },
    ]


def _measure(peer: Peer | None, work: Work, size: int) -> tuple[float, float, float]:
    clocks = time.perf_counter, peer.cpu_seconds if peer is not None else time.process_time, time.process_time
    before = [clock() for clock in clocks]
    work()
    passed, cpu, client = ((clock() - began) / (size / GB) for clock, began in zip(clocks, before, strict=True))
    return passed, cpu, client


def _wait_for_rest(peer: Peer) -> None:
    """Wait until the gateway and the disk have done what they do after a response."""
    os.sync()
    before = peer.cpu_seconds()
    while True:
        time.sleep(_REST_SECONDS)
        now = peer.cpu_seconds()
        if now - before < _REST_CPU_SECONDS:
            return
        before = now


def _write(path: Path, size: int) -> None:
    """Write a new file, then give it its name, as every program does that leaves no half file."""
    step = os.urandom(_STEP_BYTES)
    new = path.with_suffix(".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        written = flushed = 0
        while written < size:
            written += os.write(descriptor, step[: size - written])
            if written - flushed >= _FLUSH_BYTES:
                os.posix_fadvise(descriptor, flushed, written - flushed, _FADV)
                flushed = written
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.replace(path)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="bench.store", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=GB, help="bytes of a body; default: 1 GB")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="default: %(default)s")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout to run; default: this one")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    build = choose()
    costs = run(options.size, options.rounds, build.python, options.tree.resolve())
    text = f"{build}; medians of {options.rounds} rounds.\n\n{table(costs)}"
    print(text)
    if options.write:
        page.write(page.STORE, text)


if __name__ == "__main__":
    main()

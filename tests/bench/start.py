"""What a gateway costs before its first request: seconds until it accepts, and memory while it is idle.

One process with the config of the repository, on ports of its own, its code compiled by a start before. The seconds
are those from the start of the interpreter to the first response, 200 on /healthz, and of the processor until then; the
memory is the resident set once it serves; `private` leaves out the pages of libraries, which several processes share.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench import page
from tests.bench.before import ROOT, environment_of
from tests.bench.compiled import compiled_tree
from tests.bench.interpreter import choose
from tests.bench.peers import COMPILED, cpu_seconds
from tests.ports import free_port

_RUNS = 9
_START_SECONDS = 20.0
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class Start:
    """One start."""

    seconds: float
    cpu_seconds: float
    resident_bytes: int
    private_bytes: int


def measure_starts(count: int, python: str, tree: Path = ROOT) -> list[Start]:
    """Measure several starts of the gateway of a checkout, after one that does not count."""
    with tempfile.TemporaryDirectory() as compiled:
        environment = environment_of(tree) | {"PYTHONPYCACHEPREFIX": compiled}
        # A test environment may forbid it; then every start would compile the gateway.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        return [_measure_start(python, tree, environment) for _ in range(count + 1)][1:]


def _measure_start(python: str, tree: Path, environment: dict[str, str]) -> Start:
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "gateway.yaml"
        text = (tree / "config" / "gateway.yaml").read_text()
        text = re.sub(r"(?m)^listen: \S+", f"listen: 127.0.0.1:{free_port()}", text, count=1)
        ops_port = free_port()
        config.write_text(re.sub(r"(?m)^  listen: \S+", f"  listen: 127.0.0.1:{ops_port}", text, count=1))
        environment = {**environment, "GATEWAY_UPLOADS": directory}
        command = [python, "-m", "gateway", "run", "--config", str(config)]
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.DEVNULL)
        with _stopped(process):
            _wait_response(process, ops_port)
            seconds, cpu = time.perf_counter() - began, cpu_seconds(process.pid)
            # What is left to be done at the start is done.
            time.sleep(0.3)
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    fields = {key: int(value) * 1024 for key, value in re.findall(r"(?m)^(\w+): +(\d+) kB", rollup)}
    return Start(seconds, cpu, fields["Rss"], fields["Private_Clean"] + fields["Private_Dirty"])


def table(forms: Mapping[str, list[Start]]) -> str:
    """Return the medians of each form of the gateway, with the smallest and largest figures, as Markdown."""
    count = len(next(iter(forms.values())))
    lines = [f"| medians of {count} starts | {' | '.join(forms)} |", "|---" * (len(forms) + 1) + "|"]
    rows = (
        ("seconds until the first response", "seconds", 1, 3),
        ("CPU seconds until then", "cpu_seconds", 1, 3),
        ("idle: resident memory, MiB", "resident_bytes", 2**20, 1),
        ("of it private, MiB", "private_bytes", 2**20, 1),
    )
    for text, name, unit, digits in rows:
        cells = []
        for starts in forms.values():
            values = [getattr(start, name) / unit for start in starts]
            low, middle, high = (f"{each:.{digits}f}" for each in (min(values), statistics.median(values), max(values)))
            cells.append(f"{middle} ({low}-{high})")
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join(lines)


@contextlib.contextmanager
def _stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        process.communicate()


def _wait_response(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=_START_SECONDS) as sock:
                sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if sock.recv(_HEAD_BYTES).startswith(b"HTTP/1.1 200"):
                    return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the gateway did not start") from None
            time.sleep(0.001)


def main() -> None:
    """Print what a start costs."""
    parser = argparse.ArgumentParser(prog="bench.start", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout to start; default: this one")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    build = choose()
    with compiled_tree(build) as compiled:
        trees = {"gateway": options.tree.resolve()} | ({COMPILED: compiled} if compiled is not None else {})
        text = f"{build}\n\n{table({name: measure_starts(_RUNS, build.python, tree) for name, tree in trees.items()})}"
    print(text)
    if options.write:
        page.write(page.START, text)


if __name__ == "__main__":
    main()

"""Run the benchmark of workers: one process, two workers, two gateways; print tables, or write them down.

CPU is measured on a core of its own (`worker_cpu`), rates and memory on all cores (`worker_rate`), and limits and
scrapes apart from both (`supervisor`).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from tests.bench import page, supervisor, worker_cpu, worker_rate
from tests.bench.generator import missing
from tests.bench.interpreter import choose
from tests.bench.machine import Usage, describe_others
from tests.bench.peers import exit_on_sigterm

_SCRAPES = 10
_IDLE_SECONDS = 5.0
_PARTS = {"cpu": page.WORKER_CPU, "rate": page.WORKER_RATE, "supervisor": page.SUPERVISOR}


def _measure(part: str, chosen: Sequence[worker_cpu.Case], requests: int, rounds: int, python: str) -> str:
    """Return the tables of a part, as Markdown."""
    if part == "cpu":
        return worker_cpu.table(chosen, worker_cpu.run(chosen, rounds, python))
    if part == "rate":
        return worker_rate.table(chosen, worker_rate.run(chosen, rounds, python))
    limits = supervisor.limit_table(supervisor.run_limits(requests // 2, rounds, python))
    return f"{limits}\n\n{supervisor.scrape_table(supervisor.run_scrape(_SCRAPES, _IDLE_SECONDS, python))}"


def main() -> int:
    """Run what the command line asks for."""
    exit_on_sigterm()
    parser = argparse.ArgumentParser(prog="bench.workers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=10**9 // 8, help="bytes of each of 8 uploads; default: %(default)s")
    parser.add_argument("--requests", type=int, default=3200, help="small requests a round; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--part", choices=_PARTS, help="only this; default: all")
    parser.add_argument("--only", default="", help="only cases whose name has this text, and no limits and scrapes")
    parser.add_argument("--write", action="store_true", help="write docs/scaling.md; not with --only")
    options = parser.parse_args()
    if options.only and (options.write or options.part == "supervisor"):
        parser.error("--only is not for --write, nor for the supervisor")
    if (reason := missing()) is not None:
        print(f"bench: no workers, because {reason}", file=sys.stderr)
        return 0
    began, build = time.monotonic(), choose()
    chosen = [case for case in worker_cpu.cases(options.size, options.requests) if options.only in case.name]
    parts = [options.part] if options.part else [part for part in _PARTS if part != "supervisor" or not options.only]
    for part in parts:
        used = Usage.now()
        tables = _measure(part, chosen, options.requests, options.rounds, build.python)
        rounds = f"{os.cpu_count()} cores, loopback, medians of {options.rounds} rounds; {describe_others(used)}."
        text = f"{build}; {rounds}\n\n{tables}"
        print(f"{text}\n", flush=True)
        if options.write:
            page.write(_PARTS[part], text, page.SCALING)
    print(f"bench: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Print what the microseconds of one small request are: CPU of the gateway by module, and calls.

Time is sampled in a gateway started for it (see `profiled`), shares are of the CPU time without sampling. The thread
that writes the log is a row of its own, from its clock. Calls are those of Python functions, and of C functions by the
module that makes them; they do not depend on the load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import page, profiled, small_requests
from tests.bench.generator import Generator, Load, Mode, missing, run_generator
from tests.bench.interpreter import choose
from tests.bench.interpreter import describe as describe_python
from tests.bench.peers import PROFILED, PROFILED_COPY, Peer, Setting, exit_on_sigterm, start_peers

REQUESTS = {
    "GET": small_requests.GET,
    "JSON": small_requests.JSON,
    "form": small_requests.FORM,
    "headers": small_requests.JSON_WITH_HEADERS,
}
_LOG_THREAD = "thread that writes the log"
_WAIT_SECONDS = 30
#: Parts below this are one row.
_LEAST_US = 0.5


@dataclass
class Profile:
    """Of one kind of request: microseconds and calls per request, by place."""

    total_us: float
    us: dict[profiled.Place, float] = field(default_factory=dict)
    calls: dict[profiled.Place, float] = field(default_factory=dict)


def take(peer: Peer, generator: Generator, load: Load) -> Profile:
    """Profile a running gateway: once without, once with samples, once with counted calls."""
    generator.run(peer.port, load)
    before = _threads(peer.pid)
    generator.run(peer.port, load)
    spent = {name: ns - before.get(name, 0) for name, ns in _threads(peer.pid).items()}
    main = str(peer.pid)
    us = {name: ns / 1000 / load.count for name, ns in spent.items()}
    result = Profile(sum(us.values()))
    samples = _record(peer, generator, load, profiled.SAMPLE)
    for place, count in samples.items():
        result.us[place] = us[main] * count / samples.total()
    result.us[_LOG_THREAD, ""] = sum(us.values()) - us[main]
    for place, count in _record(peer, generator, load, profiled.COUNT).items():
        result.calls[place] = count / load.count
    return result


def _record(peer: Peer, generator: Generator, load: Load, kind: int) -> Counter[profiled.Place]:
    assert peer.access_log is not None
    path = peer.access_log.with_name("profile.json")
    path.unlink(missing_ok=True)
    os.kill(peer.pid, kind)
    generator.run(peer.port, load)
    os.kill(peer.pid, profiled.STOP)
    deadline = time.monotonic() + _WAIT_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("the profiled gateway wrote no profile")
        time.sleep(0.01)
    return Counter({(name, function): count for name, function, count in json.loads(path.read_text())})


def _threads(pid: int) -> dict[str, int]:
    """Return the CPU time of each thread in ns."""
    tasks = Path(f"/proc/{pid}/task")
    return {task.name: int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()}


def part_of(file: str, *, is_fine: bool) -> str:
    """Return the row of the table a file belongs to: a package or, with `is_fine`, a module of the gateway."""
    stem = Path(file).stem
    if file == _LOG_THREAD:
        return file
    if "/asyncio/" in file or file.endswith("/selectors.py"):
        return "asyncio: event loop, reads and writes of sockets"
    if "/aiohttp/" in file:
        if stem.startswith("web"):
            return "aiohttp: server"
        return "aiohttp: client" if stem.startswith(("client", "connector")) else "aiohttp: both sides"
    if "/gateway/" in file:
        inside = file.rpartition("/gateway/")[2].removesuffix(".py")
        return f"gateway/{inside if is_fine else inside.partition('/')[0]}"
    return "other libraries"


@dataclass
class Row:
    """One part of the work for one kind of request."""

    us: float = 0.0
    python_calls: float = 0.0
    c_calls: float = 0.0


def rows_of(profile: Profile, *, is_fine: bool = False) -> dict[str, Row]:
    """Return the parts of a profile."""
    found: dict[str, Row] = {}
    for (file, _), us in profile.us.items():
        found.setdefault(part_of(file, is_fine=is_fine), Row()).us += us
    for (file, function), count in profile.calls.items():
        row = found.setdefault(part_of(file, is_fine=is_fine), Row())
        if function == profiled.C_CALLS:
            row.c_calls += count
        else:
            row.python_calls += count
    return found


def table(profiles: dict[str, Profile], *, is_fine: bool = False) -> str:
    """Return time and calls by part for each kind of request, as Markdown; what the first kind spends most on first.

    Parts that take less than half a microsecond of every kind are one row.
    """
    parts = {kind: rows_of(profile, is_fine=is_fine) for kind, profile in profiles.items()}
    names = {
        name: sum(rows[name].us for rows in parts.values() if name in rows) for rows in parts.values() for name in rows
    }
    small = {name for name in names if all(rows.get(name, Row()).us < _LEAST_US for rows in parts.values())}
    order = sorted(names.keys() - small, key=lambda name: -names[name])
    titles = ["part", *(f"{kind}: us" for kind in parts), *(f"{kind}: calls, in C" for kind in parts)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, members in [
        *((name, {name}) for name in order),
        ("less than half a us each", small),
        ("together", names.keys()),
    ]:
        sums = [_add(rows.get(member, Row()) for member in members) for rows in parts.values()]
        us = [f"{row.us:.1f}" for row in sums]
        calls = [f"{row.python_calls:.0f}, {row.c_calls:.0f}" for row in sums]
        lines.append(f"| {' | '.join([name, *us, *calls])} |")
    return "\n".join(lines)


def functions(profile: Profile, count: int) -> str:
    """Return the functions that take most time themselves, C functions and system calls they make included."""
    lines = []
    for (file, function), us in sorted(profile.us.items(), key=lambda item: -item[1])[:count]:
        calls = profile.calls.get((file, function), 0.0)
        lines.append(f"{us:7.2f} us {calls:6.2f} calls  {part_of(file, is_fine=True)} {function}")
    return "\n".join(lines)


def _add(rows: Iterable[Row]) -> Row:
    together = Row()
    for row in rows:
        together.us += row.us
        together.python_calls += row.python_calls
        together.c_calls += row.c_calls
    return together


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.profile", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kinds", default="GET,JSON,form", help=f"of {', '.join(REQUESTS)}; default: %(default)s")
    parser.add_argument("--requests", type=int, default=20_000, help="of each run; default: %(default)s")
    parser.add_argument("--connections", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--cold", action="store_true", help="a new connection for each request")
    parser.add_argument("--copy", action="store_true", help="with `lanes: copy`: the normal path for every exchange")
    parser.add_argument("--modules", action="store_true", help="modules of the gateway instead of packages")
    parser.add_argument(
        "--functions", type=int, default=0, metavar="N", help="also the N functions that take most time"
    )
    parser.add_argument("--python", help="what the gateway runs on; default: an optimised one, if there is one")
    parser.add_argument("--write", action="store_true", help="write the table to docs/benchmarks.md")
    return parser.parse_args()


def main() -> int:
    """Run what the command line asks for."""
    exit_on_sigterm()
    options = _parse()
    if (reason := missing()) is not None:
        print(f"bench: no profile, because {reason}", file=sys.stderr)
        return 0
    build = describe_python(options.python) if options.python else choose()
    mode: Mode = "cold" if options.cold else "warm"
    name = PROFILED_COPY if options.copy else PROFILED
    profiles = {}
    with run_generator() as generator, start_peers(Setting((name,), build.python), generator.port) as (peer,):
        for kind in options.kinds.split(","):
            profiles[kind] = take(peer, generator, Load(REQUESTS[kind], options.requests, options.connections, mode))
            if options.functions:
                print(f"{kind}: {profiles[kind].total_us:.1f} us\n{functions(profiles[kind], options.functions)}\n")
    text = f"{build}.\n\n{table(profiles, is_fine=options.modules)}"
    print(text)
    if options.write:
        page.write(page.PROFILE, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

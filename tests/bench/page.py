"""Writes the generated parts of docs/benchmarks.md and docs/scaling.md. Each is between two comments that name it."""

from __future__ import annotations

from pathlib import Path

from tests.bench.before import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
BODIES, SMALL, HALF_LOAD, PROFILE = "bodies", "small requests", "half load", "profile"
STORE, START = "store", "start"
SCALING = ROOT / "docs" / "scaling.md"
WORKER_CPU, WORKER_RATE, SUPERVISOR = "CPU of workers", "rate of workers", "supervisor"


def write(part: str, text: str, page: Path = PAGE) -> None:
    """Replace one part of the page. Raises ValueError if the page does not have it."""
    begin, end = f"<!-- begin: {part}, written by `make bench` -->", f"<!-- end: {part} -->"
    content = page.read_text()
    if begin not in content or end not in content:
        raise ValueError(f"{page} has no part {part!r}: expected {begin} and {end}")
    head, _, rest = content.partition(begin)
    page.write_text(f"{head}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}")

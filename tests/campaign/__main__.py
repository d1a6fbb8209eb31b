"""Run the campaign and the comparison, and write docs/reliability.md: `python -m tests.campaign [--write]`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.campaign.compare import compare
from tests.campaign.run import Campaign, Summary

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
SEEDS = (1, 2, 3, 4, 5)
BATCHES, SIZE = 12, 80
LANES = ("auto", "copy", "tls")
_KINDS = {
    "hangs": "exchanges that did not end",
    "false_wholes": "cut bodies that looked whole to a client, an upstream or a disk",
    "wrong_blames": "log lines with the wrong blame",
    "missing_lines": "exchanges without exactly one log line",
    "wrong_legs": "exchanges of which not every second was charged to a leg",
    "stray_lines": "stray log lines",
    "leaks": "batches that left an exchange, a transfer, a slot, a task or an unfinished file",
}


def main(arguments: list[str]) -> int:
    """Return 1 if there are findings."""
    summary, started = Summary(), time.monotonic()
    for seed in SEEDS:
        for lanes in LANES:
            known = len(summary.findings)
            with tempfile.TemporaryDirectory() as directory:
                asyncio.run(Campaign(seed, Path(directory), lanes, summary).run(BATCHES, SIZE))
            print(f"seed {seed}, lanes {lanes}: {summary.faults} faults, {len(summary.findings)} findings", flush=True)
            if len(summary.findings) > known:
                print("so far:", *summary.findings, sep="\n  ", flush=True)
    print(f"requests read after their batch: {dict(summary.late_requests)}")
    with tempfile.TemporaryDirectory() as directory:
        rows = asyncio.run(compare(Path(directory)))
    page = _page(summary, time.monotonic() - started, rows)
    print(page)
    if "--write" in arguments:
        PAGE.write_text(page)
    return 1 if summary.findings else 0


def _page(summary: Summary, seconds: float, rows: list[list[str]]) -> str:
    findings = "\n".join(f"| {text} | {len(getattr(summary, kind))} |" for kind, text in _KINDS.items())
    faults = "\n".join(f"| {name} | {count} |" for name, count in sorted(summary.by_fault.items()))
    outcomes = "\n".join(f"| {name} | {count} |" for name, count in summary.outcomes.most_common())
    table = [f"| {' | '.join(row)} |" for row in rows]
    table.insert(1, "|" + "---|" * len(rows[0]))
    return f"""# Reliability

This page is written by `make soak` (`python -m tests.campaign --write`).

## Fault campaign

{summary.exchanges} exchanges with {summary.faults} faults of clients, upstreams and buckets at random bytes, over
every action and lane, also with TLS on both sides, {len(SEEDS)} seeds, {seconds:.0f} s. In some batches the config is
reloaded, exchanges are cancelled, descriptors run out or the disk is full meanwhile. After each batch nothing may be
left, and every exchange must have one log line with the right blame. Not checked for their line: requests whose head
is malformed or was not sent whole, and those that were reset. While the gateway itself is disturbed, any blame is
accepted.

| found | count |
|---|---|
{findings}

| fault | count |
|---|---|
{faults}

| outcome (blame) | exchanges |
|---|---|
{outcomes}

What a bucket has stored although it did not say so (it closes without a response) stays, whole: a name in a bucket
cannot be reserved, so an object that is there may be that of another upload. Not in it: disks that do not answer
(tests/invariants/test_slow_disk.py).

## Beside other proxies

One fault at a time in an upload of 390 kB through `forward`, the same client and upstream for each proxy, in the same
run: what the client got, after how long, and whether the upstream received a whole request. A cut that is **taken for
whole** is the worst answer there is.

{chr(10).join(table)}
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

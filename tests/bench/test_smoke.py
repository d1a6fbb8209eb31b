"""The benchmark runs: every case on every peer this machine has, on small bodies. Nothing is asserted about time."""

from __future__ import annotations

import pytest

from tests.bench.__main__ import cases, run, table
from tests.bench.peers import available
from tests.conftest import require_tool


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_every_case_runs_on_every_peer() -> None:
    for name in ("nginx", "haproxy"):
        require_tool(name)
    chosen = cases(size=2_000_000, requests=40)
    costs = run(chosen, available(), rounds=1)
    text = table(chosen, costs)
    for case in chosen:
        for peer in case.peers & set(available()):
            assert f"| {case.name} | {peer} |" in text

"""The benchmark runs: every case on every peer this machine has, on small bodies. No test here depends on a time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.bench import supervisor, worker_cpu, worker_rate
from tests.bench.__main__ import QUICK, cases, comparison, run, run_quick, table
from tests.bench.before import ROOT, check_import, checkout
from tests.bench.peers import Setting, available
from tests.conftest import require_tool


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_every_case_runs_on_every_peer() -> None:
    for name in ("nginx", "haproxy"):
        require_tool(name)
    chosen = cases(size=2_000_000)
    costs = run(chosen, Setting(tuple(available()), sys.executable, rounds=1))
    text = table(chosen, costs)
    for case in chosen:
        for peer in case.peers & set(available()):
            assert f"| {case.name} | {peer} |" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_quick_benchmark_compares_with_nginx_and_with_another_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    require_tool("nginx")
    monkeypatch.setattr("tests.bench.__main__._QUICK_RUNS", 1)
    chosen = [case for case in cases(size=2_000_000) if case.name in QUICK]
    lines = comparison(chosen, run_quick(chosen, Setting((), sys.executable, rounds=1))).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == list(QUICK)
    assert all(line.count("(") == 2 for line in lines), "a ratio is missing"


@pytest.mark.slow
# Eight starts of a gateway, and 64 measurements.
@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_benchmark_of_workers_compares_each_case_with_one_process_and_with_two_gateways() -> None:
    require_tool("gcc")
    # Both orders of the ways need two parts. The cases with 64 connections differ from those with 8 in nothing else.
    every = worker_cpu.cases(size=100_000, requests=64, parts=2)
    chosen = [case for case in every if ", 64 connections" not in case.name]
    lines = worker_cpu.table(chosen, worker_cpu.run(chosen, rounds=1)).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == [case.name for case in chosen]
    assert all(line.count("(") == 4 for line in lines), "a ratio is missing"
    lines = worker_rate.table(chosen, worker_rate.run(chosen, rounds=1)).splitlines()[2:]
    assert [line.split("|")[2].strip() for line in lines] == ["1", "2", "1 + 1"] * len(chosen)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_benchmark_of_the_supervisor_has_limits_and_scrapes() -> None:
    lines = supervisor.limit_table(supervisor.run_limits(requests=64, rounds=1)).splitlines()[2:]
    assert [line.split("|")[2].strip() for line in lines] == ["1", "2"] * len(supervisor.LIMITS)
    assert len(supervisor.scrape_table(supervisor.run_scrape(scrapes=2, idle_seconds=0.1)).splitlines()) == 5


@pytest.mark.slow
def test_peer_before_imports_the_gateway_of_the_checkout_which_is_removed_afterwards() -> None:
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("not a git checkout, or one that git refuses to read")
    with checkout("HEAD") as tree:
        assert check_import(tree).is_relative_to(tree.resolve())
    assert not tree.exists()
    listed = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert str(tree) not in listed

"""How many cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.config import parse_config
from gateway.config.values import AUTO_WORKERS
from gateway.cores import count_cores, count_workers

ROUTE = "routes: [{name: a, match: {prefix: /}, fetch: {allow: ['http://x/']}}]\n"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("text", "count"),
    [("max 100000\n", 8), ("200000 100000\n", 2), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8)],
)
def test_container_limit_of_cgroup_2_bounds_the_cores(tmp_path: Path, text: str, count: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert count_cores(tmp_path) == count


def test_limit_of_a_unit_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = tmp_path / "proc"
    proc.write_text("1:name=x:/other\n0::/system.slice/gateway.service\n")
    monkeypatch.setattr("gateway.cores._PROC", proc)
    unit = tmp_path / "system.slice/gateway.service"
    unit.mkdir(parents=True)
    (unit / "cpu.max").write_text("300000 100000\n")
    assert count_cores(tmp_path) == 3


@pytest.mark.parametrize(("quota", "count"), [("-1\n", 8), ("300000\n", 3)])
def test_container_limit_of_cgroup_1_bounds_the_cores(tmp_path: Path, quota: str, count: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert count_cores(tmp_path) == count


def test_without_control_groups_all_cores_count(tmp_path: Path) -> None:
    assert count_cores(tmp_path) == 8


def test_number_of_workers_is_the_config_key_and_auto_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_workers(parse_config(ROUTE)) == 1
    assert count_workers(parse_config("workers: 3\n" + ROUTE)) == 3
    monkeypatch.setattr("gateway.cores._CGROUP", Path("/nonexistent"))
    config = parse_config("workers: auto\n" + ROUTE)
    assert config.workers == AUTO_WORKERS
    assert count_workers(config) == 8
    assert config.show()["workers"] == "auto"

"""The benchmark of the start runs. No test here depends on a time."""

from __future__ import annotations

import sys

import pytest

from tests.bench.start import measure_starts, table


@pytest.mark.slow
def test_start_is_measured_in_time_and_memory() -> None:
    lines = table({"gateway": measure_starts(1, sys.executable)}).splitlines()[2:]
    assert len(lines) == 4
    assert all(float(line.split("|")[2].split()[0]) > 0 for line in lines)

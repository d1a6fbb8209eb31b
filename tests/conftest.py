"""Fixtures every test may use, and the guard that nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.peers import DEFAULTS


def count_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def show_descriptors() -> list[str]:
    """Return what each open descriptor leads to."""
    return [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]


@pytest.fixture
async def no_leaks() -> AsyncIterator[None]:
    """Assert that a test leaves no descriptor and no task behind. To be asked for before whatever it watches."""
    tasks_before = asyncio.all_tasks()
    gc.collect()
    descriptors_before = count_descriptors()
    yield
    for _ in range(100):
        left = asyncio.all_tasks() - tasks_before - {asyncio.current_task()}
        if not left and count_descriptors() <= descriptors_before:
            return
        # Transports close their sockets in the next turns of the loop.
        await asyncio.sleep(0.01)
    assert not left, left
    assert count_descriptors() <= descriptors_before, show_descriptors()


@pytest.fixture(params=["auto", "copy"])
def every_lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on the copy lane, and on the lanes below the transports with bodies of any size."""
    lane: str = request.param
    monkeypatch.setitem(DEFAULTS, "lanes", lane)
    monkeypatch.setattr("gateway.transfer.lanes.MIN_RAW_BYTES", 1)
    return lane


def require_tool(name: str) -> str:
    """Return the path of a program, or skip saying why; with CI=true its absence is a failure."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        message = f"{name} is not installed: `make tools` as root installs it on Debian"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found

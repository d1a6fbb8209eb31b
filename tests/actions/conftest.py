"""Every test here runs on both lanes, with the same assertions."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def on_every_lane(every_lane: str) -> str:
    """Ask for both lanes."""
    return every_lane

"""Run every test of this directory once per lane setting, with the same assertions."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def on_every_lane(every_lane: str) -> str:
    """Run the test once per lane setting."""
    return every_lane

"""Every test here must leave no descriptor and no task behind."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
async def leaves_nothing(no_leaks: None) -> None:
    """Ask for the check."""

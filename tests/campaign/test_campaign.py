"""The fault campaign: no hang, no false whole, no stray log line, no leak, no wrong blame."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaign.run import Campaign, Summary


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.expected_log("asyncio", "out of system resource", reason="the upstream has no descriptor for a moment")
@pytest.mark.expected_log("gateway", "accepting on port", reason="the gateway has no descriptor for a moment")
@pytest.mark.parametrize("lanes", ["auto", "copy", "tls"])
async def test_random_faults_leave_nothing_and_nothing_cut_looks_whole(
    lanes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A client that stalls has the end of its connection over TLS only after this.
    monkeypatch.setattr("gateway.aiohttp_seam.server.DISCARD_SECONDS", 1.0)
    summary = Summary()
    await Campaign(7, tmp_path, lanes, summary).run(batches=4, size=60)
    assert summary.findings == []

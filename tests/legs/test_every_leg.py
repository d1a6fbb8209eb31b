"""Invariant 9 for random cases over all actions, lanes and slow parties.

The slow party is slow until scrapes have shown that its leg was charged for a while, and no other meanwhile. At the end
the legs of the exchange add up to its wall time, in the log and in the metrics.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Certificate
from tests.legs.cases import ACTIONS, Case, Party, make_cases
from tests.legs.scenario import run_case
from tests.s3_server import S3Server

pytestmark = [pytest.mark.slow]
#: Every action and every party at least once.
CASES = list(make_cases(1, len(ACTIONS) + len(Party)))
SOAK_CASES = list(make_cases(2, 400))


def _cases(*, with_bucket: bool) -> list[Any]:
    new = pytest.mark.new_connection(reason="the handshake of a kept one is over")
    cases = [
        pytest.param(case, id=str(case), marks=[new] if case.party is Party.CONNECT else [])
        for case in CASES
        if case.needs_bucket is with_bucket
    ]
    soaked = [case for case in SOAK_CASES if case.needs_bucket is with_bucket]
    return cases + [pytest.param(case, id=f"soak-{case}", marks=pytest.mark.soak) for case in soaked]


@pytest.mark.parametrize("case", _cases(with_bucket=False))
async def test_legs_of_an_exchange_add_up_and_the_slow_party_is_charged(
    case: Case, tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_case(case, tmp_path, certificate, None, monkeypatch)


@pytest.mark.parametrize("case", _cases(with_bucket=True))
async def test_legs_of_an_exchange_with_a_bucket_add_up(
    case: Case, tmp_path: Path, certificate: Certificate, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_case(case, tmp_path, certificate, s3_server, monkeypatch)

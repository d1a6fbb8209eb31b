"""The fault of an exceeded limit names what is too large, both numbers, and the config key to raise."""

from __future__ import annotations

from gateway.errors import FaultKind
from gateway.http.limits import limit_fault


def test_limit_fault_names_both_numbers_and_the_key_to_raise() -> None:
    declared = limit_fault(
        FaultKind.BODY_TOO_LARGE, "asr", "limits.max_body", 2.0**31, 3 * 2**31, what="The body", is_declared=True
    )
    assert declared.detail == (
        "The body is larger than 2147483648 bytes (2 GiB), 6442450944 declared: "
        "raise routes.asr.limits.max_body or send less."
    )
    assert declared.facts == {"limit": 2**31, "received": 3 * 2**31, "config_key": "routes.asr.limits.max_body"}
    parts = limit_fault(FaultKind.TOO_MANY_PARTS, "r", "limits.max_parts", 2, 3, what="The form", unit="parts")
    assert parts.detail.startswith("The form has more than 2 parts, 3 received so far: raise routes.r.limits.max_parts")

"""Faults: status by blame, problem document, Proxy-Status header."""

from __future__ import annotations

import json

from gateway.errors import Blame, Fault, FaultKind, problem_document, proxy_status


def test_every_fault_has_a_status_that_fits_its_blame() -> None:
    for kind in FaultKind:
        info = kind.info
        if kind is FaultKind.UNKNOWN_METHOD:
            # RFC 9110 section 9.1.
            assert (info.blame, info.status) == (Blame.CLIENT, 501)
        elif info.blame is Blame.CLIENT:
            assert 400 <= info.status < 500, kind
        elif info.blame is Blame.UPSTREAM:
            assert info.status in (502, 504), kind
        else:
            assert info.status in (500, 503, 507), kind


def test_fault_is_shown_as_problem_document_and_proxy_status() -> None:
    fault = Fault(FaultKind.BODY_TOO_LARGE, "too much", facts={"limit": 5})
    document = json.loads(problem_document(fault, route="r", upstream="up", request_id="id"))
    assert document["code"] == "body_too_large"
    assert (document["limit"], document["route"], document["upstream"]) == (5, "r", "up")
    assert proxy_status(fault) == b'streaming-gateway; error=http_request_error; details="Body too large"'
    assert str(fault) == "body_too_large: too much"


def test_titles_are_valid_in_a_quoted_header_value() -> None:
    for kind in FaultKind:
        assert kind.info.title.isascii()
        assert '"' not in kind.info.title


def test_fault_has_blame_outcome_and_status() -> None:
    fault = Fault(FaultKind.CLIENT_LEFT, "gone")
    assert (fault.blame, fault.outcome, fault.status) == (Blame.CLIENT, "client_left", 499)


def test_tracebacks_of_a_fault_and_of_its_causes_are_dropped() -> None:
    try:
        try:
            raise OSError
        except OSError as exc:
            cause = exc
            raise Fault(FaultKind.BUG, "it failed") from exc
    except Fault as caught:
        fault = caught
    fault.drop_tracebacks()
    assert [fault.__traceback__, fault.__cause__, cause.__traceback__] == [None] * 3

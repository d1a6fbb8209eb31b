"""The response for a fault of which no response head was sent yet: a problem document (RFC 9457)."""

from __future__ import annotations

from typing import Final

from gateway.downstream.response import ClientResponse
from gateway.errors import PROBLEM_TYPE, Fault, FaultKind, problem_document, proxy_status
from gateway.http.headers import Trace, default_lines, encode_lines

#: After these faults it is not known where the next request begins.
_CLOSING: Final = frozenset(
    {
        FaultKind.BAD_REQUEST,
        FaultKind.BAD_FRAMING,
        FaultKind.BAD_HOST,
        FaultKind.BAD_TARGET,
        FaultKind.HEAD_TOO_LARGE,
        FaultKind.TARGET_TOO_LONG,
        FaultKind.UNKNOWN_METHOD,
        FaultKind.CANCELLED,
        FaultKind.OPERATOR_CANCELLED,
    }
)


def make_refusal(
    fault: Fault, trace: Trace, *, route: str | None, upstream: str | None, must_close: bool
) -> ClientResponse:
    """Return the response for a fault: problem+json, Proxy-Status, Retry-After. Some faults close the connection."""
    request_id = trace.request_id.decode("latin-1")
    body = problem_document(fault, route=route, upstream=upstream, request_id=request_id)
    headers = [(b"Content-Type", PROBLEM_TYPE), (b"Proxy-Status", proxy_status(fault))]
    if fault.retry_after_seconds is not None:
        headers.append((b"Retry-After", b"%d" % fault.retry_after_seconds))
    is_last = must_close or fault.kind in _CLOSING
    lines = default_lines(trace) + encode_lines([*headers, *fault.headers])
    return ClientResponse.small(fault.status, lines, body, is_last=is_last)

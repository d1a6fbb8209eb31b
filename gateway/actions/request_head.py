"""The head of an upstream request, built from the client's: the one place for forward, split and mirror."""

from __future__ import annotations

from gateway.actions.body_shape import BodyShape, join_query, without_content_headers
from gateway.config import FramingMode, HostMode
from gateway.downstream import Exchange
from gateway.http.framing import Framing, choose_framing
from gateway.http.headers import encode_lines, request_lines
from gateway.upstream import RequestHead

#: Methods that say Content-Length: 0 where they have no body.
_METHODS_WITH_CONTENT = frozenset({"POST", "PUT", "PATCH"})


def make_request_head(
    exchange: Exchange,
    path: str,
    *,
    host: HostMode,
    framing: FramingMode,
    shape: BodyShape | None = None,
) -> RequestHead:
    """Return the head of the client's request as it goes to `path` of an upstream.

    `shape` describes a body that the gateway encodes anew; without it the client's body goes as it came. Raises Fault
    LENGTH_REQUIRED where the upstream needs a length that is not known.
    """
    target, client, trace = exchange.target, exchange.client, exchange.trace
    if shape is None:
        length, sent_target = exchange.length, path + target.query
        lines = request_lines(exchange.headers, client, target.authority, trace)
    else:
        length, sent_target = shape.length, join_query(path, target.query, shape.query)
        kept = without_content_headers(exchange.headers)
        lines = request_lines(kept, client, target.authority, trace) + encode_lines(shape.headers)
    return RequestHead(
        exchange.method,
        sent_target,
        (target.authority or None) if host == "preserve" else None,
        lines,
        _frame(exchange.method, length, framing, has_body=exchange.body is not None),
    )


def _frame(method: str, length: int | None, mode: FramingMode, *, has_body: bool) -> Framing | None:
    if has_body:
        return choose_framing(mode, length)
    # > A user agent SHOULD send Content-Length in a request when the method defines a meaning for enclosed content and
    # > it is not sending Transfer-Encoding (RFC 9110 section 8.6).
    return Framing(0) if method in _METHODS_WITH_CONTENT else None

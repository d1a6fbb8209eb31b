"""Checks common to all actions with a request body."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

from gateway.config import Route
from gateway.downstream import Exchange
from gateway.errors import Fault, FaultKind
from gateway.filters import BodyLimit, DigestFactory, FileHead, FilterFactory, FormObserver, join_headers
from gateway.http.routing import RouteMatch
from gateway.multipart import form_boundary_of, parse_disposition


def check_upload(exchange: Exchange, route: Route) -> BodyLimit:
    """Check expectation and declared length, before a byte of the body is asked for. Raises Fault.

    Returns the filter that holds the limit while the body flows.
    """
    exchange.check_expectation()
    limit = BodyLimit(route.limits.max_body, route.name)
    if exchange.length is not None:
        limit.check(exchange.length)
    return limit


def form_boundary(exchange: Exchange) -> bytes | None:
    """Return the boundary of a multipart/form-data body, None for any other. Raises Fault BAD_MULTIPART."""
    content_type = exchange.headers.first(b"content-type")
    if exchange.body is None or content_type is None:
        return None
    return form_boundary_of(content_type)


def refuse_empty_form(exchange: Exchange) -> None:
    """Refuse a form with `Content-Length: 0`: every form has a boundary. Raises Fault BAD_MULTIPART."""
    headers = exchange.headers
    if exchange.body is None and headers.first(b"content-length") is not None:
        kind = (headers.first(b"content-type") or b"").partition(b";")[0].strip().lower()
        if kind == b"multipart/form-data":
            raise Fault(FaultKind.BAD_MULTIPART, "The form is empty: it ends before its first boundary.")


def form_digest(exchange: Exchange, factories: Sequence[FilterFactory]) -> list[FormObserver]:
    """Return what holds a form as a whole to the Content-Digest of its request, where the route has the digest filter.

    The filter itself checks the digests of parts.
    """
    digests = [factory for factory in factories if isinstance(factory, DigestFactory)]
    is_claimed = any(exchange.headers.first(name) is not None for name in (b"content-digest", b"repr-digest"))
    if not digests or not is_claimed:
        return []
    form_observer = FormObserver(digests, exchange.client.address, lambda file, size, facts: None)
    form_observer.take_whole_body(raw_head(exchange, ""))
    return [form_observer]


def no_file_fault() -> Fault:
    """Return the fault of a form without a file."""
    return Fault(FaultKind.BAD_MULTIPART, "The form has no file: send one with a name (curl -F file=@NAME).")


def raw_head(exchange: Exchange, filename: str) -> FileHead:
    """Return the head of a body that is no form: one file."""
    headers = join_headers(
        (name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in exchange.headers
    )
    return FileHead(0, "", filename, headers.get("content-type"), exchange.length, headers, exchange.client.address)


def raw_name(exchange: Exchange, matched: RouteMatch) -> str:
    """Name a raw body: by its Content-Disposition, or the last segment of the path after the route's prefix."""
    disposition = exchange.headers.first(b"content-disposition")
    if disposition is not None:
        parameters = disposition.decode("utf-8", "surrogateescape").partition(";")[2]
        filename = parse_disposition(f'form-data; name="";{parameters}' if parameters else None, 1).filename
        if filename:
            return filename
    return unquote(matched.rest.rpartition("/")[2], errors="replace")

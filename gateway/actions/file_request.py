"""One file on its way to an upstream as a request of its own, and what came of it."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import quote

from gateway.actions.body_shape import (
    Framing,
    file_pieces,
    framing_headers,
    join_query,
    shape_file,
    without_content_headers,
)
from gateway.config.model import Split
from gateway.config.values import Endpoint, show_size
from gateway.downstream import Exchange
from gateway.errors import Fault, FaultKind, Outcome
from gateway.filters import FileHead, FilteredFile, FilterFactory, TransformFactory, head_of
from gateway.http.headers import Headers, ReceivedHeaders, encode_head, end_to_end, request_headers
from gateway.http.routing import RouteMatch
from gateway.multipart import FormField, Part
from gateway.transfer import Transfer
from gateway.upstream import UpstreamRequest, UpstreamResponse, UpstreamSink

_FIRST_FAILURE: Final = 400


@dataclass(slots=True)
class FileResult:
    """What came of one file: an upstream's answer, or a fault."""

    file: FileHead
    size: int = 0
    status: int = 0
    headers: Headers = ()
    body: bytes = b""
    fault: Fault | None = None
    #: What filters found out.
    facts: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def has_succeeded(self) -> bool:
        """Whether an upstream took it."""
        return self.fault is None and 0 < self.status < _FIRST_FAILURE

    @property
    def outcome(self) -> Outcome:
        """How it ended, for the log and the metrics."""
        if self.fault is not None:
            return self.fault.outcome
        return Outcome.COMPLETE if self.has_succeeded else Outcome.UPSTREAM_FAILED


class ResponseBudget:
    """What the answers to one form may hold together."""

    def __init__(self, most_bytes: float, route: str) -> None:
        self._most = self._left = most_bytes
        self._route = route

    def take(self, size: int) -> None:
        """Take room for so many bytes. Raises Fault RESPONSE_TOO_LARGE."""
        if size > self._left:
            raise Fault(
                FaultKind.RESPONSE_TOO_LARGE,
                f"The answers to this form are larger than {show_size(self._most)} together: raise "
                f"routes.{self._route}.split.max_response_bytes, or let the upstream say less.",
            )
        self._left -= size

    def give_back(self, size: int) -> None:
        """Give room back: its answer broke off."""
        self._left += size


class FileRequest:
    """One file being sent. Its entry is filled as it goes."""

    def __init__(
        self,
        config: Split,
        exchange: Exchange,
        matched: RouteMatch,
        part: Part,
        *,
        held: Sequence[FormField],
        factories: Sequence[FilterFactory],
        transfer: Transfer,
        framing: Framing,
    ) -> None:
        file = head_of(part, exchange.client)
        if any(isinstance(factory, TransformFactory) for factory in factories):
            file = replace(file, size=None)
        self.result = FileResult(file)
        #: Set once an endpoint is connected, or it is clear that none will be.
        self.connected = asyncio.Event()
        #: Set once nobody reads the file's bytes any more: they are gone, or its request has ended.
        self.released = asyncio.Event()
        #: What the client did wrong within this file.
        self.source_fault: Fault | None = None
        self._config = config
        self._exchange = exchange
        self._matched = matched
        self._part = part
        self._framing = framing
        self._shaped = shape_file(config.body, config.form_fields, config.filename_header, self.result.file, held)
        self._filtered = FilteredFile(factories, file, self._read_part, transfer.meter.filtering) if factories else None
        self._sink: UpstreamSink | None = None

    async def prepare(self) -> None:
        """Read as much as filters must see before an upstream hears of the file. Raises Fault."""
        if self._filtered is not None:
            await self._filtered.read_first()

    def make(self, endpoint: Endpoint) -> UpstreamRequest:
        """Return the request for an endpoint."""
        exchange, shape = self._exchange, self._shaped
        authority = exchange.target.authority
        host = authority if self._config.host == "preserve" and authority else endpoint.authority.encode()
        headers = [(b"Host", host)]
        headers += request_headers(without_content_headers(exchange.headers), exchange.client_info, exchange.trace)
        headers += shape.headers
        framing = framing_headers(self._framing, shape.length)
        headers += framing
        head = encode_head(f"{exchange.method} {self._target()} HTTP/1.1".encode("latin-1"), headers)
        return UpstreamRequest(
            head, self._carry, is_chunked=framing[0][0] == b"Transfer-Encoding", on_connected=self.connected.set
        )

    def pending(self) -> int:
        """Return how many bytes wait to leave this process."""
        return self._sink.pending() if self._sink is not None else 0

    async def take(self, response: UpstreamResponse, budget: ResponseBudget, idle_seconds: float) -> None:
        """Take an answer as far as there is room for it. Raises Fault."""
        self.result.headers = end_to_end(response.headers)
        body = bytearray()
        try:
            while chunk := await _read_in_time(response, idle_seconds):
                budget.take(len(chunk))
                body += chunk
        except BaseException:
            # Also when cancelled: others still share the room.
            budget.give_back(len(body))
            raise
        self.result.status, self.result.body = response.status, bytes(body)

    async def end(self) -> None:
        """Say that nobody reads the file's bytes any more."""
        self.result.size = self._part.size
        if self._filtered is not None:
            await self._filtered.close()
            self.result.facts = self._filtered.facts()
            # Let go: it holds our way to read.
            self._filtered = None
        self.connected.set()
        self.released.set()

    def _target(self) -> str:
        path, name = self._matched.path, self.result.file.filename
        if self._config.rewrite is not None:
            # A name of dots would climb out of the path it is put into.
            name = "upload" if name in ("", ".", "..") else quote(name, safe="", errors="surrogateescape")
            path = path.replace("{filename}", name)
        return join_query(path, self._exchange.target.query, self._shaped.query)

    async def _carry(self, sink: UpstreamSink) -> None:
        """Send the file's bytes, and what stands around them."""
        self._sink = sink
        read = self._filtered.read if self._filtered is not None else self._read_part
        pieces = file_pieces(self._shaped, self.result.file.size, read, wrong_length=self._wrong_length)
        async with aclosing(pieces):
            async for piece in pieces:
                await sink.write(piece)
        await self.end()

    async def _read_part(self) -> bytes:
        try:
            return await self._part.read()
        except Fault as fault:
            self.source_fault = fault
            raise

    def _wrong_length(self) -> Fault:
        self.source_fault = Fault(
            FaultKind.BAD_MULTIPART,
            f"Part {self.result.file.number} declares {self.result.file.size} bytes and has another number: "
            "leave out its Content-Length.",
        )
        return self.source_fault


async def _read_in_time(response: UpstreamResponse, idle_seconds: float) -> bytes:
    try:
        async with asyncio.timeout(None if math.isinf(idle_seconds) else idle_seconds):
            return await response.read()
    except TimeoutError:
        raise Fault(
            FaultKind.UPSTREAM_IDLE,
            f"The upstream sent nothing for {idle_seconds:g} s within its answer: see its log, or raise timeouts.idle.",
        ) from None


def describe(results: Sequence[FileResult], request_id: str) -> bytes:
    """Return the document that tells what came of every file, in the order of the form, as JSON."""
    parts = ",\n".join(_describe_result(result) for result in results)
    return f'{{"request_id": {json.dumps(request_id)}, "parts": [\n{parts}\n]}}\n'.encode()


def _describe_result(result: FileResult) -> str:
    file, fault = result.file, result.fault
    described: dict[str, Any] = {
        **result.facts,
        "part": file.number,
        "field": file.field,
        "filename": file.filename,
        "type": file.content_type,
        "size": result.size,
        "status": fault.status if fault is not None else result.status,
    }
    if fault is not None:
        described["error"] = {"title": fault.kind.info.title, "code": fault.kind.code, "detail": fault.detail}
        return json.dumps(described)
    described["headers"] = _describe_headers(result.headers)
    # The body goes last: JSON stays as the upstream wrote it, numbers and order and all.
    return f"{json.dumps(described)[:-1]}, {_describe_body(result)}}}"


def _describe_headers(headers: Headers) -> dict[str, str | list[str]]:
    described: dict[str, str | list[str]] = {}
    for name, value in headers:
        key, text = name.decode("latin-1").lower(), value.decode("utf-8", "replace")
        before = described.get(key)
        if before is None:
            described[key] = text
        else:
            described[key] = [*before, text] if isinstance(before, list) else [before, text]
    return described


def _describe_body(result: FileResult) -> str:
    kind = (ReceivedHeaders(result.headers).first(b"content-type") or b"").partition(b";")[0].strip().lower()
    try:
        text = result.body.decode()
        if kind == b"application/json" or kind.endswith(b"+json"):
            json.loads(text, parse_constant=_refuse_constant)
            return f'"body": {text.strip()}'
    except (ValueError, RecursionError):
        # Not what it says it is: passed on byte for byte.
        return f'"body_base64": {json.dumps(base64.b64encode(result.body).decode())}'
    return f'"body": {json.dumps(text)}'


def _refuse_constant(name: str) -> Any:
    """Refuse NaN and the infinities, which Python takes and JSON does not know."""
    raise ValueError(name)

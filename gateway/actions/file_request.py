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
    framing_fields,
    join_query,
    shape_file,
    without_content_fields,
)
from gateway.config.model import Split
from gateway.config.values import Endpoint, show_size
from gateway.downstream import Exchange
from gateway.errors import Fault, FaultKind, Outcome
from gateway.filters import FileHead, FilteredFile, FilterKind, TransformKind, head_of
from gateway.http.headers import FieldLines, Fields, encode_head, end_to_end, request_fields
from gateway.http.routing import Found
from gateway.multipart import FormField, Part
from gateway.transfer.transfer import Transfer
from gateway.upstream import ReceivedAnswer, Sending, UpstreamSink

_FIRST_FAILURE: Final = 400


@dataclass(slots=True)
class Entry:
    """What came of one file: an upstream's answer, or a fault."""

    file: FileHead
    size: int = 0
    status: int = 0
    fields: Fields = ()
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


class AnswerRoom:
    """What the answers to one form may hold together."""

    def __init__(self, most_bytes: float, route: str) -> None:
        self._most = self._left = most_bytes
        self._route = route

    def take(self, size: int) -> None:
        """Take room for so many bytes. Raises Fault ANSWER_TOO_LARGE."""
        if size > self._left:
            raise Fault(
                FaultKind.ANSWER_TOO_LARGE,
                f"The answers to this form are larger than {show_size(self._most)} together: raise "
                f"routes.{self._route}.split.max_answers, or let the upstream say less.",
            )
        self._left -= size

    def give_back(self, size: int) -> None:
        """Give room back: its answer broke off."""
        self._left += size


class Delivery:
    """One file being sent. Its entry is filled as it goes."""

    def __init__(
        self,
        config: Split,
        exchange: Exchange,
        found: Found,
        part: Part,
        *,
        held: Sequence[FormField],
        kinds: Sequence[FilterKind],
        transfer: Transfer,
        framing: Framing,
    ) -> None:
        file = head_of(part, exchange.client)
        if any(isinstance(kind, TransformKind) for kind in kinds):
            file = replace(file, size=None)
        self.entry = Entry(file)
        #: Set once an endpoint is connected, or it is clear that none will be.
        self.connected = asyncio.Event()
        #: Set once nobody reads the file's bytes any more: they are gone, or its request has ended.
        self.let_go = asyncio.Event()
        #: What the client did wrong within this file.
        self.source_fault: Fault | None = None
        self._config = config
        self._exchange = exchange
        self._found = found
        self._part = part
        self._framing = framing
        self._shaped = shape_file(config.body, config.fields, config.file_name, self.entry.file, held)
        self._filtered = FilteredFile(kinds, file, self._read_part, transfer.filtering) if kinds else None
        self._sink: UpstreamSink | None = None

    async def prepare(self) -> None:
        """Read as much as filters must see before an upstream hears of the file. Raises Fault."""
        if self._filtered is not None:
            await self._filtered.read_first()

    def make(self, endpoint: Endpoint) -> Sending:
        """Return the request for an endpoint."""
        exchange, shaped = self._exchange, self._shaped
        authority = exchange.target.authority
        host = authority if self._config.host == "preserve" and authority else endpoint.authority.encode()
        fields = [(b"Host", host)]
        fields += request_fields(without_content_fields(exchange.fields), exchange.origin, exchange.trace)
        fields += shaped.fields
        framing = framing_fields(self._framing, shaped.length)
        fields += framing
        head = encode_head(f"{exchange.method} {self._target()} HTTP/1.1".encode("latin-1"), fields)
        return Sending(
            head, self._carry, is_chunked=framing[0][0] == b"Transfer-Encoding", on_connected=self.connected.set
        )

    def pending(self) -> int:
        """Return how many bytes wait to leave this process."""
        return self._sink.pending() if self._sink is not None else 0

    async def take(self, answer: ReceivedAnswer, room: AnswerRoom, idle_seconds: float) -> None:
        """Take an answer as far as there is room for it. Raises Fault."""
        self.entry.fields = end_to_end(answer.fields)
        body = bytearray()
        try:
            while chunk := await _read_in_time(answer, idle_seconds):
                room.take(len(chunk))
                body += chunk
        except BaseException:
            # Also when cancelled: others still share the room.
            room.give_back(len(body))
            raise
        self.entry.status, self.entry.body = answer.status, bytes(body)

    async def end(self) -> None:
        """Say that nobody reads the file's bytes any more."""
        self.entry.size = self._part.size
        if self._filtered is not None:
            await self._filtered.close()
            self.entry.facts = self._filtered.facts()
            # Let go: it holds our way to read.
            self._filtered = None
        self.connected.set()
        self.let_go.set()

    def _target(self) -> str:
        path, name = self._found.path, self.entry.file.filename
        if self._config.rewrite is not None:
            # A name of dots would climb out of the path it is put into.
            name = "upload" if name in ("", ".", "..") else quote(name, safe="", errors="surrogateescape")
            path = path.replace("{filename}", name)
        return join_query(path, self._exchange.target.query, self._shaped.query)

    async def _carry(self, sink: UpstreamSink) -> None:
        """Send the file's bytes, and what stands around them."""
        self._sink = sink
        read = self._filtered.read if self._filtered is not None else self._read_part
        pieces = file_pieces(self._shaped, self.entry.file.size, read, wrong_length=self._wrong_length)
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
            f"Part {self.entry.file.number} declares {self.entry.file.size} bytes and has another number: "
            "leave out its Content-Length.",
        )
        return self.source_fault


async def _read_in_time(answer: ReceivedAnswer, idle_seconds: float) -> bytes:
    try:
        async with asyncio.timeout(None if math.isinf(idle_seconds) else idle_seconds):
            return await answer.read()
    except TimeoutError:
        raise Fault(
            FaultKind.UPSTREAM_IDLE,
            f"The upstream sent nothing for {idle_seconds:g} s within its answer: see its log, or raise timeouts.idle.",
        ) from None


def describe(entries: Sequence[Entry], request_id: str) -> bytes:
    """Return the document that tells what came of every file, in the order of the form, as JSON."""
    parts = ",\n".join(_describe_entry(entry) for entry in entries)
    return f'{{"request_id": {json.dumps(request_id)}, "parts": [\n{parts}\n]}}\n'.encode()


def _describe_entry(entry: Entry) -> str:
    file, fault = entry.file, entry.fault
    described: dict[str, Any] = {
        **entry.facts,
        "part": file.number,
        "field": file.field,
        "filename": file.filename,
        "type": file.content_type,
        "size": entry.size,
        "status": fault.status if fault is not None else entry.status,
    }
    if fault is not None:
        described["error"] = {"title": fault.kind.verdict.title, "code": fault.kind.code, "detail": fault.detail}
        return json.dumps(described)
    described["fields"] = _describe_fields(entry.fields)
    # The body goes last: JSON stays as the upstream wrote it, numbers and order and all.
    return f"{json.dumps(described)[:-1]}, {_describe_body(entry)}}}"


def _describe_fields(fields: Fields) -> dict[str, str | list[str]]:
    described: dict[str, str | list[str]] = {}
    for name, value in fields:
        key, text = name.decode("latin-1").lower(), value.decode("utf-8", "replace")
        before = described.get(key)
        if before is None:
            described[key] = text
        else:
            described[key] = [*before, text] if isinstance(before, list) else [before, text]
    return described


def _describe_body(entry: Entry) -> str:
    kind = (FieldLines(entry.fields).first(b"content-type") or b"").partition(b";")[0].strip().lower()
    try:
        text = entry.body.decode()
        if kind == b"application/json" or kind.endswith(b"+json"):
            json.loads(text, parse_constant=_refuse_constant)
            return f'"body": {text.strip()}'
    except (ValueError, RecursionError):
        # Not what it says it is: passed on byte for byte.
        return f'"body_base64": {json.dumps(base64.b64encode(entry.body).decode())}'
    return f'"body": {json.dumps(text)}'


def _refuse_constant(name: str) -> Any:
    """Refuse NaN and the infinities, which Python takes and JSON does not know."""
    raise ValueError(name)

"""One file of a form as a request of its own, and its result."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import quote

from gateway.actions.body_shape import file_pieces, shape_file
from gateway.actions.request_head import make_request_head
from gateway.config import FramingMode
from gateway.config.actions import Split
from gateway.config.values import Endpoint, show_size
from gateway.downstream import Exchange
from gateway.errors import Blame, Fault, FaultKind, Outcome
from gateway.filters import FileHead, FilteredFile, FilterFactory, TransformFactory, head_of
from gateway.http.headers import Headers, end_to_end
from gateway.http.routing import RouteMatch
from gateway.multipart import FormField, Part
from gateway.observe.stats import Leg
from gateway.observe.waits import Wait
from gateway.transfer import Transfer
from gateway.upstream import RequestHead, UpstreamPool, UpstreamResponse, UpstreamSink

_FIRST_FAILURE: Final = 400


@dataclass(slots=True)
class FileResult:
    """The result of one file: an upstream's response, or a fault."""

    file: FileHead
    size: int = 0
    status: int = 0
    headers: Headers = ()
    body: bytes = b""
    fault: Fault | None = None
    #: What filters found.
    facts: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def has_succeeded(self) -> bool:
        """Whether an upstream accepted it."""
        return self.fault is None and 0 < self.status < _FIRST_FAILURE

    @property
    def outcome(self) -> Outcome:
        """How it ended, for the log and the metrics."""
        if self.fault is not None:
            return self.fault.outcome
        return Outcome.COMPLETE if self.has_succeeded else Outcome.UPSTREAM_FAILED

    @property
    def blame(self) -> Blame:
        """Whose fault it was, for the log."""
        if self.fault is not None:
            return self.fault.blame
        return Blame.NONE if self.has_succeeded else Blame.UPSTREAM


class ResponseBudget:
    """The memory that the responses to one form may hold together."""

    def __init__(self, max_bytes: float, route: str) -> None:
        self._max_bytes = self._free_bytes = max_bytes
        self._route = route

    def reserve(self, size: int) -> None:
        """Reserve `size` bytes. Raises Fault RESPONSE_TOO_LARGE."""
        if size > self._free_bytes:
            raise Fault(
                FaultKind.RESPONSE_TOO_LARGE,
                f"The responses to this form are larger than {show_size(self._max_bytes)} together: raise "
                f"routes.{self._route}.split.max_response_bytes, or have the upstream send less.",
            )
        self._free_bytes -= size

    def release(self, size: int) -> None:
        """Release `size` bytes of a response that broke off."""
        self._free_bytes += size


class FileRequest:
    """One file sent to an upstream. Its result is filled in as it goes.

        call            by                    effect
        prepare         the reader of parts   reads the bytes that filters must see first
        head            the file's task       the head of its request; valid after `prepare`
        send_to(sink)   the request           sends the file's bytes, once
        receive         the file's task       takes the response into the result
        end             both                  closes filters; nothing reads the file's bytes any more

    What the client does wrong within the file is a failure of the form's transfer, and recorded there.
    """

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
    ) -> None:
        file = head_of(part, exchange.client.address)
        if any(isinstance(factory, TransformFactory) for factory in factories):
            file = replace(file, size=None)
        self.result = FileResult(file)
        #: Set once an endpoint is connected, or cannot be.
        self.connected = asyncio.Event()
        #: Set once the file's bytes are sent, or its request has ended.
        self.released = asyncio.Event()
        #: What this file waits for beside the transfer of the form.
        self.wait = Wait(exchange.waits)
        self._config = config
        self._exchange = exchange
        self._matched = matched
        self._part = part
        self._transfer = transfer
        self._shape = shape_file(config.body, config.form_fields, config.filename_header, file, held)
        self._filtered = FilteredFile(factories, file, self._read_part, transfer.meter) if factories else None
        self._sink: UpstreamSink | None = None

    async def prepare(self) -> None:
        """Read the bytes that filters must see before an upstream receives the request. Raises Fault."""
        if self._filtered is not None:
            await self._filtered.read_first()

    def make_head(self, framing: FramingMode) -> RequestHead:
        """Return the head of the file's request. Raises Fault LENGTH_REQUIRED."""
        path, name = self._matched.path, self.result.file.filename
        if self._config.rewrite is not None:
            # A name of dots would climb out of the path it is put into.
            name = "upload" if name in ("", ".", "..") else quote(name, safe="", errors="surrogateescape")
            path = path.replace("{filename}", name)
        return make_request_head(self._exchange, path, host=self._config.host, framing=framing, shape=self._shape)

    def record_endpoint(self, endpoint: Endpoint) -> None:
        """Record the endpoint that the request is sent to: its connection is waited for."""
        self._exchange.endpoint = str(endpoint)
        self.wait.wait_on(Leg.CONNECT)

    def record_connected(self) -> None:
        """Record that an endpoint is connected: the transfer of the form is charged while the file's bytes are sent."""
        self.wait.stop()
        self.connected.set()

    def acknowledged(self) -> int:
        """Return the progress of the upstream, see `gateway.transfer.progress`."""
        return self._sink.acknowledged() if self._sink is not None else 0

    async def send_to(self, sink: UpstreamSink) -> None:
        """Send the file's bytes with what surrounds them. Raises Fault for the source, OSError for the sink."""
        self._sink = sink
        read = self._filtered.read if self._filtered is not None else self._read_part
        async with aclosing(
            file_pieces(self._shape, self.result.file.size, read, wrong_length=self._wrong_length)
        ) as pieces:
            async for piece in pieces:
                await sink.write(piece)
        if self.wait.waiting_on is not Leg.UPSTREAM_READ:
            # No early response.
            self.wait.wait_on(Leg.UPSTREAM_RESPONSE)
        await self.end()

    async def receive(self, response: UpstreamResponse, budget: ResponseBudget, upstream: UpstreamPool) -> None:
        """Take a response into the result, as far as the budget allows. Raises Fault."""
        self.wait.wait_on(Leg.UPSTREAM_READ)
        self.result.headers = end_to_end(response.headers)
        body, turns = bytearray(), self._transfer.turns
        try:
            while chunk := await _read_in_time(response, upstream):
                budget.reserve(len(chunk))
                body += chunk
                if not turns.has_time():
                    await turns.wait()
        except BaseException:
            # Also when cancelled: the responses of other files share the budget.
            budget.release(len(body))
            raise
        self.result.status, self.result.body = response.status, bytes(body)

    async def end(self) -> None:
        """Close filters and report that nothing reads the file's bytes any more."""
        self.result.size = self._part.size
        if self._filtered is not None:
            await self._filtered.close()
            self.result.facts = self._filtered.facts()
            # It refers to `_read_part`, and so to this object: a reference cycle.
            self._filtered = None
        self.connected.set()
        self.released.set()

    async def _read_part(self) -> bytes:
        try:
            return await self._part.read()
        except Fault as fault:
            self._transfer.fail(fault)
            raise

    def _wrong_length(self) -> Fault:
        fault = Fault(
            FaultKind.BAD_MULTIPART,
            f"Part {self.result.file.number} declares {self.result.file.size} bytes and has another number: "
            "leave out its Content-Length.",
        )
        self._transfer.fail(fault)
        return fault


async def _read_in_time(response: UpstreamResponse, upstream: UpstreamPool) -> bytes:
    seconds = upstream.idle_seconds
    try:
        async with asyncio.timeout(seconds):
            return await response.read()
    except TimeoutError:
        raise Fault(
            FaultKind.UPSTREAM_IDLE,
            f"The upstream sent nothing of its response for {seconds:g} s: see why the upstream is slow, or raise "
            f"{upstream.timeouts_key}.idle ({seconds:g} s).",
        ) from None

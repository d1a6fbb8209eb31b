"""One request with its response: what is known of them, and the only ways they can end.

    state               call                                next
    nothing sent        reply, or fail (a problem document)   ended
    nothing sent        begin_response                        head sent
    head sent           the response's end                    ended
    head sent           cut, or fail (the connection breaks)  ended

Never two of them. A response that is sent before the request body has arrived closes the connection after it; the rest
of the body is read and dropped first, within bounds of time and size (RFC 9112 section 9.6), so that the client reads
the response and not a reset.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiohttp.streams import StreamReader

from gateway.aiohttp_seam import DISCARD_BYTES, DISCARD_SECONDS, Message, ServerConnection
from gateway.config import Route
from gateway.config.values import Endpoint
from gateway.downstream.body import ReceivedBody, RequestBody, WholeBody
from gateway.downstream.parts import FileEnd, Part, worse_file
from gateway.downstream.refusal import make_refusal
from gateway.downstream.response import ClientResponse, abort, idle_seconds_of
from gateway.errors import Blame, Fault, FaultKind, Outcome
from gateway.http.client import Client
from gateway.http.headers import Header, ReceivedHeaders, default_lines, encode_lines, trace_context
from gateway.http.request_head import Target
from gateway.http.routing import Found, RouteMatch, RouteTable
from gateway.http.whole_request import WholeRequest
from gateway.observe.stats import Leg, RouteStats
from gateway.observe.waits import Waits
from gateway.transfer import AsyncFilter, Filter, Source, Timers, Transfer, TransferPolicy, WholeTransfer

#: A line of the access log describes at most this many parts.
_MAX_PARTS_LOGGED: Final = 64
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Exchange:
    """One request with its response."""

    # Of most exchanges these stay as they are, so they are not set for each.
    #: Set by `enter_route`: the route.
    route: Route | None = None
    #: Set by the action: the upstream's name, and the endpoint the request was sent to last.
    upstream = ""
    endpoint = ""
    #: Set by `find_routes`.
    target: Target
    #: Whether the gateway is draining: the response closes the connection.
    is_draining = False
    #: Whether an operator cancelled it; its task was cancelled, too.
    is_operator_cancelled = False
    response: ClientResponse | None = None
    fault: Fault | None = None
    #: How the worst of the files ended that were sent by themselves, once one has failed.
    worst_file: FileEnd | None = None
    #: What the access log says about the parts of a form, the first of them.
    parts: Sequence[Part] = ()
    #: The parts of a form that have ended, all of them.
    part_count = 0
    first_byte_seconds: float | None = None
    _expects_continue = False

    def __init__(
        self,
        connection: ServerConnection,
        message: Message,
        content: StreamReader,
        *,
        client: Client,
        stats: RouteStats,
        timers: Timers,
    ) -> None:
        """`content` is the stream of the body, empty where the message has it."""
        #: What it waits for, and its seconds by leg.
        waits = self.waits = Waits(stats, since=message.began_at if isinstance(message, WholeRequest) else None)
        self.started = waits.own_since
        self.upload: Transfer | WholeTransfer | None = None
        self.download: Transfer | WholeTransfer | None = None
        self._connection = connection
        self._message = message
        self._timers = timers
        self.method = message.method
        self.version: tuple[int, int] = message.version
        self.raw_target = message.path
        self.client = client
        #: Where it is counted: the route's statistics, once it is chosen.
        self.stats = stats
        #: Declared length of the request body, None if it is chunked, 0 without one.
        self.length: int | None
        self.body: ReceivedBody | None
        if isinstance(message, WholeRequest):
            self.headers = headers = message.headers
            self.length = len(message.body)
            self.body = WholeBody(message.body) if message.body else None
        else:
            self.headers = headers = ReceivedHeaders(message.raw_headers)
            is_chunked = headers.first(b"transfer-encoding") is not None
            self.length = None if is_chunked else int(headers.first(b"content-length") or 0)
            self.body = RequestBody(connection, content) if self.length != 0 else None
        self.trace = trace_context(headers, is_trusted=client.is_trusted)

    def enter_route(self, route: Route, stats: RouteStats) -> None:
        """Record the route; what is not charged yet is charged to it."""
        self.route, self.stats = route, stats
        self.waits.route = stats

    def find_routes(self, table: RouteTable) -> Sequence[RouteMatch]:
        """Check the request head and return the routes that match; none for the target `*`. Raises Fault."""
        message = self._message
        found: Found | None = None
        if isinstance(message, WholeRequest):
            # It has one Host and a short head, of which nothing is refused: only the target is to be looked up.
            found = table.known.get((message.method, message.path, message.headers.values[b"host"][0]))
        if found is None:
            found = table.look_up(self.version, self.method, self.raw_target, self.headers)
        self.target = found.target
        return found.candidates

    def check_expectation(self) -> None:
        """Record 100-continue. Raises Fault EXPECTATION_FAILED for any other expectation (RFC 9110 section 10.1.1)."""
        expectation = self.headers.first(b"expect")
        if expectation is None:
            return
        if expectation.strip().lower() != b"100-continue":
            raise Fault(FaultKind.EXPECTATION_FAILED, "The only expectation known is 100-continue.")
        # > A server that receives a 100-continue expectation in an HTTP/1.0 request MUST ignore that expectation.
        self._expects_continue = self.version >= (1, 1) and self.body is not None

    def send_continue(self) -> None:
        """Send 100 Continue to a client that waits for it: only once route, limits, capacity and sink are ready."""
        if not self._expects_continue:
            return
        self._expects_continue = False
        transport = self._connection.transport
        if transport is not None and self.body is not None and not self.body.has_begun:
            transport.write(_CONTINUE)

    async def take_turn(self) -> None:
        """Let bodies of other exchanges work."""
        if not self._timers.turns.has_time():
            await self._timers.turns.wait()

    @property
    def is_client_gone(self) -> bool:
        """Whether the client's connection is lost."""
        transport = self._connection.transport
        return transport is None or transport.is_closing()

    @property
    def is_delivered(self) -> bool:
        """Whether a client that left had received its whole response: it may leave before the transfer has ended."""
        is_whole = self.download is not None and self.download.is_whole
        # A connection that is closing may still hold bytes: it has to be closed, and without an error.
        is_gone = self._connection.transport is None
        return is_whole and is_gone and not self._connection.was_broken

    @property
    def outcome(self) -> Outcome:
        """How the exchange as a whole ended."""
        end = self.fault or self.worst_file
        return end.outcome if end is not None else Outcome.COMPLETE

    @property
    def blame(self) -> Blame:
        """Whose fault it was."""
        end = self.fault or self.worst_file
        return end.blame if end is not None else Blame.NONE

    @property
    def status(self) -> int:
        """The status that was sent, or the fault's where none was."""
        response = self.response
        if response is not None and response.has_begun:
            return response.status
        return self.fault.status if self.fault else FaultKind.BUG.info.status

    @property
    def remaining_bytes(self) -> int | None:
        """Bytes of its bodies still to come, as far as that is known; None if it is not."""
        transfers = [transfer for transfer in (self.upload, self.download) if transfer and transfer.outcome is None]
        known = [size for transfer in transfers if (size := transfer.remaining_bytes) is not None]
        return sum(known) if known else None

    def why_cancelled(self) -> Fault:
        """Return why its task was cancelled: the client left, an operator cancelled it, or the gateway stops."""
        if self.is_client_gone:
            return Fault(FaultKind.CLIENT_LEFT, "The client closed the connection before its response was complete.")
        if self.is_operator_cancelled:
            return Fault(FaultKind.OPERATOR_CANCELLED, "An operator of the gateway cancelled this request: ask them.")
        return Fault(FaultKind.CANCELLED, "The gateway stopped before the response was complete: try again.")

    def begin_upload(
        self, policy: TransferPolicy, filters: Sequence[Filter], async_filters: Sequence[AsyncFilter] = ()
    ) -> Transfer:
        """Return the transfer of the request body. There must be one."""
        if self.body is None:
            raise ValueError("a request without a body has nothing to upload")
        self.upload = upload = Transfer(
            policy,
            self.body,
            self.waits,
            self._timers,
            owner=self,
            length=self.length,
            filters=filters,
            async_filters=async_filters,
        )
        return upload

    def begin_download(self, policy: TransferPolicy, source: Source, length: int | None) -> Transfer:
        """Return the transfer of the response body."""
        self.download = download = Transfer(policy, source, self.waits, self._timers, owner=self, length=length)
        return download

    def count_upload(self, policy: TransferPolicy, size: int, lane: str, *, ended: float) -> None:
        """Count a request body that was passed on in one step, since the request came."""
        self.upload = WholeTransfer(policy, self.stats, size, lane, started=self.started, ended=ended)

    def count_download(self, policy: TransferPolicy, size: int, lane: str) -> None:
        """Count a response body of which `send_whole` has just sent all."""
        waits = self.waits
        self.download = WholeTransfer(policy, self.stats, size, lane, started=waits.own_since, ended=waits.clock())

    def record_endpoint(self, endpoint: Endpoint) -> None:
        """Record the endpoint that the request is sent to: its connection is waited for."""
        self.endpoint = str(endpoint)
        self.waits.wait_on(Leg.CONNECT)

    def record_connected(self) -> None:
        """Record that an endpoint is connected: the client may send its body, and the response is waited for."""
        self.waits.wait_on(Leg.UPSTREAM_RESPONSE)
        if self._expects_continue:
            self.send_continue()

    def record_file_end(self, outcome: Outcome, blame: Blame) -> None:
        """Record how one file ended that was sent by itself: the exchange ended as the worst of them."""
        self.worst_file = worse_file(self.worst_file, FileEnd(outcome, blame))

    def record_part(
        self, number: int, kind: str, size: int, outcome: Outcome, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Count a part that has ended, and describe it in the access log."""
        self.stats.count_part(kind, size, outcome)
        self.part_count += 1
        if len(self.parts) < _MAX_PARTS_LOGGED:
            self.parts = [*self.parts, Part(number, kind, size, outcome, facts)]

    def begin_response(
        self, status: int, reason: bytes, lines: bytes, length: int | None, *, is_ready: bool = False
    ) -> ClientResponse:
        """Send the head of a response whose body follows. Raises Fault CLIENT_LEFT.

        `lines` are its headers in wire form, those that frame the body are added.
        With `is_ready` the caller writes the first bytes of the body without waiting: they leave with the head.
        """
        self.response = ClientResponse(
            status, reason, lines, length=length, is_last=self._must_close, is_ready=is_ready
        )
        self._send_head(self.response)
        return self.response

    def send_whole(self, status: int, reason: bytes, lines: bytes, body: bytes, length: int | None) -> bool:
        """Send a whole response in one step; return whether the kernel has taken all of it.

        `length` is that of the head: None if it is not known. The client must be connected.
        """
        self.response = ClientResponse(status, reason, lines, length=length, is_last=self._must_close)
        # Before it is written: writing it is what the transfer takes.
        self.first_byte_seconds = self.waits.wait_on(Leg.DOWNSTREAM_WRITE) - self.started
        return self.response.send_whole(self._connection, self._message, body)

    async def reply(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        """Send a whole response. Raises Fault CLIENT_LEFT; CLIENT_IDLE if the client takes none of it."""
        lines = default_lines(self.trace) + encode_lines(headers)
        self.response = ClientResponse.small(status, lines, body, is_last=self._must_close)
        self._send_head(self.response)
        await self.response.flush(idle_seconds_of(self.route))

    def fail(self, fault: Fault) -> None:
        """End the exchange with a fault: send a problem document if no head was sent, cut the connection otherwise."""
        self.fault = fault
        if self.response is not None and self.response.has_begun:
            self.cut()
        elif fault.kind is FaultKind.CLIENT_LEFT or self.is_client_gone:
            self._drop_connection()
        else:
            self.response = make_refusal(
                fault,
                self.trace,
                route=self.route.name if self.route else None,
                upstream=self.upstream or None,
                must_close=self._must_close,
            )
            try:
                self._send_head(self.response)
            except Fault:
                self._drop_connection()

    def cut(self) -> None:
        """Break off a response that has begun."""
        if self.response is not None:
            self.response.cut()

    async def finish(self) -> bool:
        """Wait until the response was sent; return whether the connection may be kept. The last call."""
        response = self.response
        if response is None:
            return False
        await self.discard_request_body()
        try:
            await response.end(idle_seconds_of(self.route))
        except Fault:
            # The client left, or takes nothing of what was sent last.
            response.cut()
            return False
        return response.keep_alive

    async def discard_request_body(self) -> None:
        """After an early response, read and drop what the client still sends, so that it can read the response.

        A client that still waits for 100 Continue sends nothing: the connection closes at once.
        """
        transport = self._connection.transport
        if transport is None or transport.is_closing() or self._expects_continue:
            return
        if self.body is None or self.body.is_received:
            if self.response is not None and not self.response.keep_alive:
                await self._discard_later_requests()
            return
        drained = 0
        try:
            if transport.can_write_eof():
                # Raises where the kernel knows of a reset that the transport has yet to read.
                transport.write_eof()
            async with asyncio.timeout(DISCARD_SECONDS):
                self.body.receive_less_at_once()
                while chunk := await self.body.read():
                    drained += len(chunk)
                    if drained >= DISCARD_BYTES:
                        return
                    await self.take_turn()
        except OSError:
            # A bound was reached or the client closed: the response was sent, nothing is left to do.
            return
        except Fault as fault:
            # The client closed, or its body is malformed: then what follows is dropped as it is.
            if fault.kind is not FaultKind.BAD_FRAMING:
                return
        await self._discard_later_requests()

    async def _discard_later_requests(self) -> None:
        """Drop pipelined requests after the last response, which announced the close (RFC 9112 section 9.3.2)."""
        await self._connection.discard_input()

    @property
    def _must_close(self) -> bool:
        """Whether the connection cannot be kept: draining, CONNECT, or the parser has not seen the whole body.

        Parsers differ on whether CONNECT has a body (RFC 9110 section 9.3.6: it has none, whatever its headers say).
        """
        body = self.body
        if self.method == "CONNECT" or (body is not None and (body.is_raw or not body.is_received)):
            return True
        # While draining, a request that was received after this one is answered, too.
        return self.is_draining and not self._connection.has_next

    def _send_head(self, response: ClientResponse) -> None:
        response.begin(self._connection, self._message)
        # Outside of transfers, whatever is waited for from here on is the client.
        self.first_byte_seconds = self.waits.wait_on(Leg.DOWNSTREAM_WRITE) - self.started

    def _drop_connection(self) -> None:
        """Close the connection: the client is gone."""
        if self.response is None:
            self.response = ClientResponse.small(self.status, b"", b"", is_last=True)
        self.response.cut()
        if (transport := self._connection.transport) is not None:
            abort(transport, with_reset=False)

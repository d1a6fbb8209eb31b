"""One request to an upstream: its head, and its body in a task of its own.

The head is written as it is given, byte for byte. aiohttp's own request would fold headers that differ in case, drop
bytes that are not UTF-8, lose an empty query, and wait for the first byte of the body.

Who calls what, in this order; `UpstreamClient.send` and then `UpstreamResponse` own a request (both), an action only
sees the response:

    call                by                  valid       effect
    start(connection)   UpstreamClient.send once        takes the connection, sends the head, starts the body's task
    start(connection)   UpstreamClient.send stranded    goes on with another one; nothing was sent on the first
    go_on(..)           UpstreamPool        once, in place of start: it was sent whole on a connection
    body.send_to(sink)  the body's task     once        the body is sent; its failure breaks the connection off
    fault               both                any time    what broke the body: to be asked before the upstream is blamed
    close(is_whole)     both                once        gives the connection back if both bodies ended whole, or aborts
    stop()              both                at last     on return nothing reads the client's body any more
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

import aiohttp
from aiohttp.http_writer import StreamWriter

from gateway.aiohttp_seam import ClientConnection, drain_write_buffer, is_plain_tcp, socket_of
from gateway.config.values import Endpoint
from gateway.errors import Fault, FaultKind
from gateway.transfer import RawSocket, TimerQueue, acknowledged_bytes, open_raw_socket
from gateway.upstream.request_head import RequestHead

#: How long to wait for the transport to read what an upstream sent before it broke the connection: the bytes are in the
#: kernel already.
_CLOSE_WAIT_SECONDS: Final = 1.0
#: Chunks shorter than this are sent in one segment with the head.
_JOINED_BYTES: Final = 16 * 1024
#: A request body is held for a second attempt up to this size.
_MAX_HELD_BYTES: Final = 64 * 1024


class OutgoingBody(Protocol):
    """The body of an upstream request."""

    async def send_to(self, sink: UpstreamSink, /) -> None:
        """Send the body; the caller sends its end. Raises Fault for the source, OSError for the sink.

        Cancelled when the response has ended or the exchange is cut; the rest of the source stays unread.
        """
        ...


class HeldBody:
    """A body that was sent and may be sent a second time; held up to 64 KiB."""

    __slots__ = (
        "_chunks",
        "_held_bytes",
        "is_whole",
    )

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._held_bytes = 0
        #: Whether every chunk so far is held.
        self.is_whole = True

    def add(self, chunk: bytes) -> None:
        """Hold a chunk, or drop all if that is too much."""
        self._held_bytes += len(chunk)
        if self._held_bytes > _MAX_HELD_BYTES:
            self.drop()
        elif self.is_whole:
            self._chunks.append(chunk)

    def drop(self) -> None:
        """Hold nothing any more: chunks pass that are not seen here."""
        self._chunks.clear()
        self.is_whole = False

    async def send_to(self, sink: UpstreamSink) -> None:
        """Send what is held. Raises OSError."""
        for chunk in self._chunks:
            await sink.write(chunk)


class UpstreamRequest:
    """A request on one connection. See the table above for its lifecycle."""

    __slots__ = (
        "_body",
        "_has_body",
        "_head",
        "_held",
        "_is_chunked",
        "_is_idempotent",
        "_moved",
        "_on_connected",
        "_sink",
        "_task",
        "_transport",
        "connection",
        "deadlines",
        "sent_at",
    )

    def __init__(
        self,
        head: RequestHead,
        endpoint: Endpoint,
        body: OutgoingBody | None,
        on_connected: Callable[[], None] | None = None,
    ) -> None:
        self._head = head.encode(endpoint.authority.encode())
        self._is_idempotent = head.is_idempotent
        # Dropped once started, like `on_connected`: they belong to an exchange, which holds the response to this.
        self._body = body
        self._on_connected = on_connected
        self._is_chunked = head.is_chunked
        self._held = HeldBody() if body is not None and self._is_idempotent else None
        self._has_body = body is not None
        #: The connection it was started on, None once it was given back.
        self.connection: ClientConnection | None = None
        self._transport: asyncio.Transport | None = None
        self._sink: UpstreamSink | None = None
        self._task: asyncio.Task[None] | None = None
        #: Done once a stranded request has another connection.
        self._moved: asyncio.Future[None] | None = None
        #: Where the time of the response runs, once the whole request was handed to the connection.
        self.deadlines: TimerQueue | None = None
        #: When that was, on the monotonic clock.
        self.sent_at: float | None = None

    def start(self, connection: ClientConnection) -> None:
        """Write the head, and start a task that sends the body. Raises aiohttp.ClientError.

        `on_connected` is called first: from here on the client may be asked for the body. A stranded request goes on
        with this connection.
        """
        transport, loop = connection.transport, asyncio.get_running_loop()
        if transport is None:
            raise aiohttp.ClientConnectionError("the connection was lost before the request was sent")
        self.connection, self._transport = connection, transport
        if self._moved is not None:
            if self._sink is None or self._moved.done():
                raise aiohttp.ClientConnectionError("the body failed before the request was sent")
            self._sink.connect(connection, transport)
            self._moved.set_result(None)
            # After a chunk that waits for it.
            loop.call_soon(self._sink.send_head)
            return
        if self._on_connected is not None:
            self._on_connected()
            self._on_connected = None
        body, self._body = self._body, None
        if body is None:
            transport.write(self._head)
            self._mark_sent()
            return
        self._sink = UpstreamSink(self, self._head, is_chunked=self._is_chunked, held=self._held)
        self._sink.connect(connection, transport)
        # The task runs before `send_head`, so the head leaves together with a chunk that is there at once.
        self._task = loop.create_task(self._send_body(body, self._sink), name="gateway upload")
        self._task.add_done_callback(self._check_task)
        loop.call_soon(self._sink.send_head)

    def go_on(self, connection: ClientConnection, body: bytes, sent_at: float) -> None:
        """Go on with a request that was sent whole on a connection, at this monotonic time."""
        self.connection, self._transport, self.sent_at = connection, connection.transport, sent_at
        if body:
            self._has_body = True
            if self._is_idempotent:
                self._held = HeldBody()
                self._held.add(body)

    @property
    def is_stranded(self) -> bool:
        """Whether it waits for another connection: none of it was sent on the one it had."""
        is_waiting = self._moved is not None and not self._moved.done()
        return is_waiting and self._task is not None and not self._task.done()

    def strand(self) -> asyncio.Future[None]:
        """Give up the connection before anything was sent; return what is done once there is another."""
        if self._moved is None:
            self._moved = asyncio.get_running_loop().create_future()
            if self._transport is not None:
                self._transport.abort()
        return self._moved

    @property
    def is_repeatable(self) -> bool:
        """Whether it may be sent a second time: it is idempotent, and without a body or with one that is held whole."""
        if not self._has_body:
            return self._is_idempotent
        return self.sent_at is not None and self._held is not None and self._held.is_whole

    @property
    def held_body(self) -> HeldBody | None:
        """The body of a repeatable request, None without one."""
        return self._held

    @property
    def fault(self) -> Fault | None:
        """What broke the body, None if nothing did: the failure of the task that sends it."""
        task = self._task
        if task is None or not task.done() or task.cancelled() or (exc := task.exception()) is None:
            return None
        return exc if isinstance(exc, Fault) else Fault(FaultKind.BUG, "The gateway failed; its log has the reason.")

    def time_out(self) -> None:
        """Fail the read of the response: it did not come in time."""
        if self.connection is not None:
            self.connection.set_exception(aiohttp.SocketTimeoutError("no response in time"))

    def close(self, *, is_whole: bool) -> None:
        """Give the connection back to the pool if both bodies ended whole, abort it otherwise.

        Aborted, it drops what waits in its buffer: a peer that does not read would hold it forever.
        """
        connection, self.connection = self.connection, None
        if connection is None:
            return
        if is_whole and self.sent_at is not None:
            connection.release()
            return
        if self._transport is not None:
            self._transport.abort()
        connection.drop()

    async def stop(self) -> None:
        """Stop sending; on return nothing reads the source any more."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _send_body(self, body: OutgoingBody, sink: UpstreamSink) -> None:
        """Send the body and its end.

        A failure of the source breaks the connection off at once: the upstream would wait for the rest, and the reader
        of the response for the upstream. A failure to send is passed to that reader, after a response that is here.
        """
        try:
            await body.send_to(sink)
            await sink.end()
        except Fault:
            if self._transport is not None:
                self._transport.abort()
            raise
        except OSError as exc:
            if self.connection is not None:
                await _report_failure(self.connection, exc)
        else:
            self._mark_sent()

    def _check_task(self, task: asyncio.Task[None]) -> None:
        """Break the connection off after a bug, too, and log it."""
        # It refers to this request: a reference cycle.
        self._sink = None
        # Retrieved here, so that asyncio does not log it.
        if task.cancelled() or (exc := task.exception()) is None or isinstance(exc, Fault):
            return
        if self._transport is not None:
            self._transport.abort()
        task.get_loop().call_exception_handler({"message": "bug while a body was sent", "exception": exc})

    def _mark_sent(self) -> None:
        self.sent_at = time.monotonic()
        if self.deadlines is not None:
            self.deadlines.start(self, self.time_out)


class UpstreamSink:
    """The sink of a request's body; the head is sent with the first chunk if that is here at once.

    If something has arrived on a kept connection since it was chosen, nothing is sent on it: the upstream has closed
    it, or sent bytes that would be read as the response to this request. The request waits for another connection then.
    """

    _connection: ClientConnection
    _transport: asyncio.Transport
    _writer: StreamWriter

    def __init__(
        self, request: UpstreamRequest, head: bytes, *, is_chunked: bool, held: HeldBody | None = None
    ) -> None:
        self._request = request
        self._is_chunked = is_chunked
        self._unsent_head = head
        self._held = held

    def connect(self, connection: ClientConnection, transport: asyncio.Transport) -> None:
        """Use this connection; valid until something was sent."""
        self._connection, self._transport = connection, transport
        self._writer = StreamWriter(connection, asyncio.get_running_loop())
        if self._is_chunked:
            self._writer.enable_chunking()

    def acknowledged(self) -> int:
        """Return the progress of the upstream, see `gateway.transfer.progress`."""
        return acknowledged_bytes(socket_of(self._transport))

    def send_head(self) -> None:
        """Send the head, if it was not sent with a chunk."""
        if not self._unsent_head:
            return
        if self._is_usable():
            self._transport.write(self._take_head())
        else:
            self._request.strand()

    async def write(self, chunk: bytes, /) -> None:
        """Send a chunk; returns when the upstream keeps up. Raises OSError if it is gone."""
        if self._held is not None:
            self._held.add(chunk)
        if self._unsent_head:
            if not self._is_usable():
                await self._request.strand()
            if len(chunk) < _JOINED_BYTES and not self._is_chunked:
                chunk = self._take_head() + chunk
            else:
                self.send_head()
        await self._writer.write(chunk)

    async def end(self) -> None:
        """Send the end of the body, where its framing has one."""
        await self._begin()
        await self._writer.write_eof()

    async def open_raw_socket(self) -> RawSocket | None:
        """Flush, and return a socket to send the rest of the body on; None if the connection is not plain TCP."""
        await self._begin()
        if not is_plain_tcp(self._transport):
            return None
        if self._held is not None:
            self._held.drop()
        await drain_write_buffer(self._transport, self._writer.drain)
        return open_raw_socket(self._transport, is_chunked=self._is_chunked)

    async def _begin(self) -> None:
        if self._unsent_head:
            if not self._is_usable():
                await self._request.strand()
            self.send_head()

    def _is_usable(self) -> bool:
        return not self._connection.is_kept or self._connection.is_untouched()

    def _take_head(self) -> bytes:
        head, self._unsent_head = self._unsent_head, b""
        return head

    def translate_error(self, exc: OSError) -> OSError:
        """Return the error as it is: `UpstreamRequest` looks for a response that came before it."""
        return exc


async def _report_failure(connection: ClientConnection, exc: OSError) -> None:
    """Pass a failure to send to the reader of the response, after a response that is here."""
    if isinstance(exc, ConnectionResetError):
        connection.record_reset(exc)
    await _wait_for_close(connection)
    if connection.exception() is None:
        connection.set_exception(aiohttp.ClientOSError(exc.errno, "the body could not be sent"), exc)


async def _wait_for_close(connection: ClientConnection) -> None:
    """Wait until the transport has read what the upstream sent before it broke the connection.

    If the failure were passed on at once, the reader of the response would never see one that is here already.
    """
    closed = connection.closed
    if closed is None:
        return
    # Retrieved also where this wait is cancelled; asyncio would log an exception that was never retrieved.
    closed.add_done_callback(lambda future: future.cancelled() or future.exception())
    await asyncio.wait([closed], timeout=_CLOSE_WAIT_SECONDS)

"""aiohttp's client, with its gaps closed (each verified against aiohttp 3.14.5).

- `WireRequest` writes the head it is given, byte for byte: aiohttp's own would fold fields that differ in case, drop
  bytes that are not UTF-8, lose an empty query, and wait for the first byte of the body.
- `AnswerHandler` sees a reset behind a body that only the close ends, a broken chunk in mid-body, and the answer of
  an upstream that reset the connection while we were still sending.
- `LiveConnector` does not hand out a kept connection that the upstream has closed meanwhile.
"""

from __future__ import annotations

import asyncio
import functools
import os
import select
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
from aiohttp import payload
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest, ClientResponse, ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http_writer import StreamWriter

from gateway.errors import Fault
from gateway.lanes import SocketEnd, drain_whole, is_plain

_READ_BYTES: Final = 2**18
#: How long the last words of an upstream that broke the connection are waited for: they are in our kernel already.
_LAST_WORDS_SECONDS: Final = 1.0

Carry = Callable[["UpstreamSink"], Awaitable[None]]


class WireBody(payload.Payload):
    """A request as it goes on the wire: its head, and how its body gets there (`carry`, None without one).

    Handed to aiohttp as the body, so that head and body reach `WireRequest` through its public door.
    """

    def __init__(
        self,
        head: bytes,
        carry: Carry | None,
        *,
        is_chunked: bool,
        on_connected: Callable[[], None],
    ) -> None:
        super().__init__(None, content_type="application/octet-stream")
        self.head = head
        #: How the body gets into the sink it is given.
        self.carry = carry
        #: What broke our side of the request, to be asked before the upstream is blamed.
        self.fault: Fault | None = None
        self.is_chunked = is_chunked
        #: Called once an endpoint is connected, before the first byte of the body is asked for.
        self.on_connected = on_connected
        #: Called once the whole request was handed to the connection.
        self.on_sent: Callable[[], None] | None = None
        self.transport: asyncio.Transport | None = None
        self.sink: UpstreamSink | None = None
        self.task: asyncio.Task[None] | None = None
        self.is_sent = False

    @property
    def size(self) -> int | None:
        """Framing stands in the head: nothing for aiohttp to derive."""
        return 0

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Refuse: a stream has no text."""
        raise TypeError("a stream cannot be decoded")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send the body, see write_with_length."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Pour the body into the connection, in aiohttp's writer task.

        A failure of the source breaks the connection off at once: aiohttp would leave an answer that has begun
        hanging, and the upstream waiting for the rest.
        """
        del content_length
        if self.carry is None or self.sink is None:
            return
        self._consumed = True
        try:
            await self.carry(self.sink)
        except Fault as fault:
            self.fault = fault
            self.abort()
            raise
        self.sent()

    def sent(self) -> None:
        """Say that the whole request was handed to the connection."""
        self.is_sent = True
        if self.on_sent is not None:
            self.on_sent()

    async def stop(self) -> None:
        """Stop sending; on return nothing reads the source any more."""
        if self.task is not None and not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task])

    def abort(self) -> None:
        """Drop the connection with whatever waits in its buffer: a peer that does not read would hold it for ever."""
        if self.transport is not None:
            self.transport.abort()


class UpstreamSink:
    """Where the chunks of a request's body go."""

    def __init__(self, writer: StreamWriter, protocol: ResponseHandler, transport: asyncio.Transport) -> None:
        self.write = writer.write
        self.pending = transport.get_write_buffer_size
        self._writer = writer
        self._protocol = protocol
        self._transport = transport

    async def detach(self) -> SocketEnd | None:
        """Flush, and return an end to send the rest of the body on; None if it is not plain TCP."""
        if not is_plain(self._transport):
            return None
        await drain_whole(self._transport, self._writer.drain)
        return SocketEnd(self._transport, is_chunked=self._writer.chunked) if is_plain(self._transport) else None

    async def fail(self, exc: OSError) -> OSError:
        """Return what a failure to send means, once the transport has read what the upstream said before it left.

        Told at once, aiohttp would forget an answer that is there already.
        """
        closed = self._protocol.closed
        if closed is not None:
            await asyncio.wait([closed], timeout=_LAST_WORDS_SECONDS)
        return exc


class WireRequest(ClientRequest):
    """aiohttp's request, with our head."""

    async def send(self, conn: Connection) -> ClientResponse:
        """Write the head at once, start the body, return the response to be awaited."""
        wire = self._body
        protocol = conn.protocol
        if not isinstance(wire, WireBody) or protocol is None or protocol.transport is None:
            raise aiohttp.ClientConnectionError("the connection was lost before the request was sent")
        writer = StreamWriter(protocol, self.loop)
        if wire.is_chunked:
            writer.enable_chunking()
        wire.transport = protocol.transport
        wire.sink = UpstreamSink(writer, protocol, protocol.transport)
        wire.transport.write(wire.head)
        task: asyncio.Task[None] | None = None
        wire.on_connected()
        if wire.carry is None:
            wire.sent()
        else:
            # aiohttp keeps the task too and cancels it with the answer; named for the reader of a task dump.
            task = wire.task = self.loop.create_task(self.write_bytes(writer, conn), name="gateway upload")
            self._writer = task
        self.response = ClientResponse(
            self.method,
            self.original_url,
            writer=task,
            continue100=None,
            timer=self._timer,
            request_info=self.request_info,
            traces=[],
            loop=self.loop,
            session=self._session,
            stream_writer=writer,
        )
        return self.response


class AnswerHandler(ResponseHandler):
    """The protocol of an upstream connection."""

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and tell the body being read if the parser gave up in the midst of it."""
        body = self._payload
        super().data_received(data)
        if self._exception is not None and body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError("malformed chunk"))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Take in what had arrived before a reset, then tell the body being read of it.

        asyncio's send may meet the reset before its reader sees the answer that came before it: the bytes are
        still in the socket, which asyncio closes only after this call. A body that only the close ends would be
        taken for whole.
        """
        if exc is not None:
            self._salvage()
            body = self._payload
            if body is not None and not body.is_eof() and body.exception() is None:
                body.set_exception(aiohttp.ClientPayloadError("connection reset within the body"))
        super().connection_lost(exc)

    def _salvage(self) -> None:
        sock = self.transport.get_extra_info("socket") if self.transport is not None else None
        if sock is None or sock.fileno() < 0 or self.transport.get_extra_info("sslcontext") is not None:  # type: ignore[union-attr]  # guarded above
            return
        try:
            while data := os.read(sock.fileno(), _READ_BYTES):
                self.data_received(data)
        except OSError:
            # Nothing more to be read: the reset itself, or an empty socket.
            return


class LiveConnector(aiohttp.TCPConnector):
    """A connector whose kept connections are looked at before they are used again."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = functools.partial(AnswerHandler, loop=self._loop)  # type: ignore[assignment]  # typed for its own class

    async def _get(self, key: ConnectionKey, traces: list[Any]) -> Connection | None:
        while (connection := await super()._get(key, traces)) is not None:
            transport = connection.transport
            sock = transport.get_extra_info("socket") if transport is not None else None
            is_clean = connection.protocol is not None and not connection.protocol.should_close
            if sock is not None and is_clean and not _has_news(sock.fileno()):
                return connection
            # Closed by the upstream, or bytes nobody asked for: neither may meet the next request.
            connection.close()
        return None


def _has_news(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLRDHUP)
    return bool(poll.poll(0))

"""One request to an upstream: its head, and its body in a task of its own.

The head is written as it is given, byte for byte. aiohttp's own request would fold headers that differ in case, drop
bytes that are not UTF-8, lose an empty query, and wait for the first byte of the body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_writer import StreamWriter

from gateway.aiohttp_seam import drain_write_buffer, is_plain_tcp
from gateway.errors import Fault, FaultKind
from gateway.transfer import RawSocket

#: How long the last words of an upstream that broke the connection are waited for: they are in our kernel already.
_CLOSE_WAIT_SECONDS: Final = 1.0
#: Chunks shorter than this are sent in one segment with the head.
_JOINED_BYTES: Final = 16 * 1024

Carry = Callable[["UpstreamSink"], Awaitable[None]]


class UpstreamRequest:
    """A request as it goes on the wire: its head, and how its body gets there (`carry`, None without one)."""

    def __init__(
        self,
        head: bytes,
        carry: Carry | None,
        *,
        is_chunked: bool,
        on_connected: Callable[[], None] | None = None,
    ) -> None:
        self._head = head
        #: Dropped once begun, like what is called then: they belong to an exchange, which holds the answer to this.
        self._carry = carry
        self._is_chunked = is_chunked
        self._on_connected = on_connected
        self._connection: Connection | None = None
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        #: What broke our side of the request, to be asked before the upstream is blamed.
        self.fault: Fault | None = None
        #: Called once the whole request was handed to the connection.
        self.on_sent: Callable[[], None] | None = None
        self._is_sent = False

    def begin(self, connection: Connection) -> None:
        """Write the head at once, and let the body follow in a task of its own. Raises aiohttp.ClientError.

        Connected: from here on the body may be asked for.
        """
        protocol, loop = connection.protocol, asyncio.get_running_loop()
        if protocol is None or protocol.transport is None:
            raise aiohttp.ClientConnectionError("the connection was lost before the request was sent")
        self._connection, self._transport = connection, protocol.transport
        if self._on_connected is not None:
            self._on_connected()
            self._on_connected = None
        carry, self._carry = self._carry, None
        if carry is None:
            protocol.transport.write(self._head)
            self._end()
            return
        sink = UpstreamSink(protocol, protocol.transport, self._head, is_chunked=self._is_chunked)
        # Named for the reader of a task dump. It runs before the head is sent without the body's beginning.
        self._task = loop.create_task(self._send_body(carry, sink, protocol), name="gateway upload")
        self._task.add_done_callback(self._note_bug)
        loop.call_soon(sink.send_head)

    async def stop(self) -> None:
        """Stop sending; on return nothing reads the source any more."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def close(self, *, is_whole: bool) -> None:
        """Give the connection back, to be kept if both bodies ended whole.

        Otherwise drop it with whatever waits in its buffer: a peer that does not read would hold it for ever.
        """
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if is_whole and self._is_sent:
            connection.release()
            return
        if self._transport is not None:
            self._transport.abort()
        connection.close()

    async def _send_body(self, carry: Carry, sink: UpstreamSink, protocol: ResponseHandler) -> None:
        """Pour the body into the connection.

        A failure of the source breaks the connection off at once: the upstream would wait for the rest, and whoever
        awaits its answer for the upstream. A failure to send is told to them, behind an answer that has come already.
        """
        try:
            await carry(sink)
            await sink.end()
        except Fault as fault:
            self.fault = fault
            if self._transport is not None:
                self._transport.abort()
        except OSError as exc:
            await _wait_for_close(protocol)
            if protocol.exception() is None:
                protocol.set_exception(aiohttp.ClientOSError(exc.errno, "the body could not be sent"), exc)
        else:
            self._end()

    def _note_bug(self, task: asyncio.Task[None]) -> None:
        """Break the connection off for what nobody foresaw, too, and say so in the log."""
        if task.cancelled() or (exc := task.exception()) is None:
            return
        self.fault = Fault(FaultKind.BUG, "The gateway failed; its log has the reason.")
        if self._transport is not None:
            self._transport.abort()
        task.get_loop().call_exception_handler({"message": "bug while a body was sent", "exception": exc})

    def _end(self) -> None:
        self._is_sent = True
        if self.on_sent is not None:
            self.on_sent()


class UpstreamSink:
    """Where the chunks of a request's body go; the first takes the head along if it is there at once."""

    def __init__(
        self, protocol: ResponseHandler, transport: asyncio.Transport, head: bytes, *, is_chunked: bool
    ) -> None:
        self.pending = transport.get_write_buffer_size
        self._writer = StreamWriter(protocol, asyncio.get_running_loop())
        if is_chunked:
            self._writer.enable_chunking()
        self._transport = transport
        self._held_head = head

    def send_head(self) -> None:
        """Send the head, if no chunk has taken it along."""
        head, self._held_head = self._held_head, b""
        if head:
            self._transport.write(head)

    async def write(self, chunk: bytes, /) -> None:
        """Send a chunk; returns when the upstream keeps up. Raises OSError if it is gone."""
        if self._held_head:
            if len(chunk) < _JOINED_BYTES and not self._writer.chunked:
                chunk, self._held_head = self._held_head + chunk, b""
            else:
                self.send_head()
        await self._writer.write(chunk)

    async def end(self) -> None:
        """Send the end of the body, where its framing has one."""
        self.send_head()
        await self._writer.write_eof()

    async def detach(self) -> RawSocket | None:
        """Flush, and return an end to send the rest of the body on; None if it is not plain TCP."""
        if not is_plain_tcp(self._transport):
            return None
        self.send_head()
        await drain_write_buffer(self._transport, self._writer.drain)
        return RawSocket(self._transport, is_chunked=self._writer.chunked) if is_plain_tcp(self._transport) else None

    async def fail(self, exc: OSError) -> OSError:
        """Return it: `UpstreamRequest` asks what the upstream said before it left."""
        return exc


async def _wait_for_close(protocol: ResponseHandler) -> None:
    """Wait until the transport has read what the upstream said before it broke the connection.

    Told of the failure at once, whoever awaits the answer would never see one that is there already.
    """
    closed = protocol.closed
    if closed is not None:
        await asyncio.wait([closed], timeout=_CLOSE_WAIT_SECONDS)

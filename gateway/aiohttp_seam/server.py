"""aiohttp's server protocol, with its gaps closed, and fed message by message. Verified against aiohttp 3.14.5.

- A client that leaves while reading is paused is not noticed by aiohttp before it reads again. Here such a connection
  is watched. Delete that when asyncio's transports report a peer's end while they are paused.
- aiohttp limits each header and their number, which allows heads of 800 KiB. Here the whole head is limited while it
  arrives. Delete that when aiohttp does so.
- A close while the client still sends makes the kernel reset the connection, and the client may lose the last response.
  Here such input is read and dropped first (RFC 9112 section 9.6). Delete when aiohttp does so for more than bodies.
- aiohttp leaves a read of the request body waiting forever after a broken chunk, hands trailers to the next request,
  and cannot continue a chunked body whose rest was read below the transport. Here our decoder decodes chunked bodies.
- A request that came whole and plain is not parsed by aiohttp (`gateway.http.whole_request`). Where only the rest of a
  short body is missing, it is awaited for a moment first: see `data_received`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestPayloadError

from gateway.aiohttp_seam.feed import BodyHead, MessageFeed, Turns
from gateway.aiohttp_seam.messages import MessageLoop, Take
from gateway.aiohttp_seam.transports import has_input, is_plain_tcp, set_receive_size, socket_of
from gateway.errors import Fault
from gateway.http.chunked import ChunkedDecoder
from gateway.http.client import peer_address
from gateway.http.request_head import MAX_HEAD_BYTES
from gateway.http.whole_request import WholeRequest, read_whole_request

#: Bounds of what is read and dropped after the last response: nginx's lingering_timeout, and what a LAN sends in it.
DISCARD_SECONDS: Final = 5.0
DISCARD_BYTES: Final = 512 * 2**20
#: Received per call of what is dropped, which takes no turns: with 256 KiB, fifty clients that go on sending after a
#: refusal took 13 ms of each iteration of the loop.
DISCARD_STEP_BYTES: Final = 32 * 1024


#: A body that does not come with its head is awaited for so long, and up to this size, before its request is handled.
_HOLD_SECONDS: Final = 0.05
_MAX_HELD_BYTES: Final = 32 * 1024
#: Requests of a connection that are parsed ahead of the one that is handled; each holds up to 64 KiB of a body.
_MAX_PIPELINED: Final = 4


class HeadTooLarge(BadHttpMessage):
    """A head of more than MAX_HEAD_BYTES, of which no more is parsed."""


class OnLeave(Protocol):
    """Called when a client has left."""

    def __call__(self, *, was_reset: bool) -> None:
        """React to a reset connection, or to the end of what the client sends."""
        ...


class Watch(Protocol):
    """Watches connections that are not being read."""

    def start(self, descriptor: int, on_leave: OnLeave) -> None:
        """Call `on_leave` once the peer has left. A call while it is watched changes nothing."""
        ...

    def stop(self, descriptor: int, on_leave: OnLeave) -> None:
        """Stop watching. A call while it is not watched changes nothing."""
        ...


class _NoParser:
    """Takes the place of the parser of a connection whose head is too large."""

    def feed_data(self, data: bytes) -> None:
        raise HeadTooLarge(f"{len(data)} bytes that exceed the limit of {MAX_HEAD_BYTES}")

    def message_consumed(self) -> None:
        pass


class ServerConnection(MessageLoop):
    """One connection of a client. `options` are those of aiohttp's RequestHandler.

    A subclass has `handle` and `refuse`, which send a response each.
    """

    __slots__ = (
        "_descriptor",
        "_discardable_bytes",
        "_discarding",
        "_feed",
        "_held",
        "_held_since",
        "_hold_timer",
        "_is_cut",
        "_last_message",
        "_receive_bytes",
        "was_broken",
        "watch",
    )

    def __init__(
        self,
        server: web.Server,
        *,
        loop: asyncio.AbstractEventLoop,
        turns: Turns,
        receive_bytes: int,
        watch: Watch,
        take: Take | None = None,
        **options: Any,
    ) -> None:
        super().__init__(server, loop=loop, turns=turns, take=take, **options)
        self.watch = watch
        self._descriptor = -1
        #: Whether bytes that were written are dropped.
        self._is_cut = False
        self._receive_bytes = receive_bytes
        # aiohttp's 20 requests with small bodies held 2 MiB.
        self._max_msg_queue_size, self._msg_queue_resume_size = _MAX_PIPELINED, _MAX_PIPELINED // 2
        #: Whether the connection ended with an error: bytes that were written may not have arrived.
        self.was_broken = False
        self._feed = MessageFeed(self, self, turns, is_lenient=False)
        #: The beginning of a request whose body is awaited, and since when.
        self._held = b""
        self._held_since = 0.0
        self._hold_timer: asyncio.TimerHandle | None = None
        #: The last head parsed, and its body.
        self._last_message: object = None
        #: Set while input is dropped; its result is set when more came than may.
        self._discarding: asyncio.Future[None] | None = None
        self._discardable_bytes = 0

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for a request head, and everything that the kernel received was read and parsed."""
        waiter = self._waiter
        transport = self.transport
        if waiter is None or waiter.done() or transport is None or transport.is_closing():
            return False
        return not self._feed.has_unparsed and not has_input(transport)

    @property
    def peer_address(self) -> str:
        """The address of the client as it is logged, compared and sent on; "" where it is not known."""
        peer = self.transport.get_extra_info("peername") if self.transport is not None else None
        return peer_address(peer[0]) if peer else ""

    @property
    def is_kept(self) -> bool:
        """Whether it had a request before, and nothing of the next one was received."""
        return self._request_count > 0 and not self._feed.is_within_head

    @property
    def has_next(self) -> bool:
        """Whether something of a further request was received after the one being handled."""
        return bool(self._messages) or self._feed.has_unparsed or self._feed.is_within_head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start; receive at most `receive_bytes` per call."""
        super().connection_made(transport)
        set_receive_size(transport, self._receive_bytes)
        self._descriptor = transport.get_extra_info("socket").fileno()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Record how the connection ended: asyncio closes without an error only after every byte written was sent."""
        if self._held:
            # A request whose rest will not come is handled first, as one is whose client leaves a moment later.
            self._release()
            self._loop.call_soon(self.connection_lost, exc)
            return
        self.watch.stop(self._descriptor, self._leave)
        if self._hold_timer is not None:
            self._end_hold()
        self.was_broken = exc is not None or self._is_cut
        super().connection_lost(exc)
        self._feed.close()
        self.lose_taken()

    def data_received(self, data: bytes) -> None:
        """Read what was received, in turns. aiohttp calls this with b"" where it continues after a pause."""
        if self._discarding is not None:
            self._discardable_bytes -= len(data)
            if self._discardable_bytes < 0 and not self._discarding.done():
                self._discarding.set_result(None)
            return
        if self._held:
            data = self._take_held() + data
        waiter = self._waiter
        if waiter is not None and self._feed.is_idle and not (waiter.done() or self._close or self._force_close):
            request = read_whole_request(data)
            if isinstance(request, WholeRequest):
                if self._hold_timer is not None:
                    request.began_at = self._end_hold()
                self.receive_whole(request, waiter)
                return
            if request is not None and request <= _MAX_HELD_BYTES:
                self._hold(data, waiter)
                return
        if self._hold_timer is not None:
            self._end_hold()
        if not data and self._feed.decoder is None:
            self.parse(b"")
        self._feed.receive(data)

    def eof_received(self) -> None:
        """Have a request handled whose rest will not come. Then the transport closes."""
        self._release()

    def _hold(self, data: bytes, waiter: asyncio.Future[None]) -> None:
        """Await the rest of a short body, before the task is woken for its request.

        Most clients in Python send head and body one after the other.
        """
        self._held = data
        # Meanwhile the connection is not idle.
        self._waiter, self._idle_waiter = None, waiter
        if self._hold_timer is None:
            self._held_since = self._loop.time()
            self._hold_timer = self._loop.call_later(_HOLD_SECONDS, self._release)

    def close(self) -> None:
        """Have no further request handled, also none whose short body is awaited: the connection closes."""
        self._end_hold()
        if self._held:
            self._take_held()
        super().close()

    def _take_held(self) -> bytes:
        held, self._held = self._held, b""
        self._waiter, self._idle_waiter = self._idle_waiter, None
        return held

    def _end_hold(self) -> float:
        """Stop the timer; return since when something was held."""
        if self._hold_timer is not None:
            self._hold_timer.cancel()
            self._hold_timer = None
        return self._held_since

    def _release(self) -> None:
        """Parse what is held: its handler awaits the rest."""
        self._end_hold()
        if self._held:
            self._feed.receive(self._take_held())

    def parse(self, data: bytes) -> BodyHead | None:
        """Feed aiohttp's parser; return the body that follows if `data` ended a head that has one."""
        if self._feed.head_bytes > MAX_HEAD_BYTES:
            no_parser: Any = _NoParser()
            self._parser = no_parser
        super().data_received(data)
        messages = self._messages
        if not messages or messages[-1] is self._last_message:
            return None
        self._last_message = messages[-1]
        message, body = messages[-1]
        if body.is_eof():
            # Without a body, whatever its headers say: CONNECT.
            return None
        # aiohttp's stand-in for an unreadable head has no headers.
        headers = getattr(message, "headers", {})
        if getattr(message, "chunked", False):
            return BodyHead(body, None)
        length = headers.get("Content-Length")
        return BodyHead(body, int(length)) if length is not None else None

    def _pause_transport_reading(self) -> None:
        super()._pause_transport_reading()
        if self.transport is not None and not self.transport.is_closing():
            self.watch.start(self._descriptor, self._leave)

    def _resume_transport_reading(self) -> None:
        self.watch.stop(self._descriptor, self._leave)
        super()._resume_transport_reading()

    def _leave(self, *, was_reset: bool) -> None:
        """Close the connection of a client that left while reading was paused, as reading its end would have."""
        transport = self.transport
        if transport is None or socket_of(transport) is None or transport.is_reading():
            return
        if was_reset or not is_plain_tcp(transport):
            # Over TLS, to close is to wait for what a paused transport does not read.
            self._is_cut = True
            transport.abort()
        else:
            transport.close()

    def may_parse_head(self) -> bool:
        """Return whether aiohttp's queue of requests has room; it calls `data_received` when it has again."""
        return self._discarding is None and len(self._messages) < self._max_msg_queue_size

    def may_have_body(self) -> bool:
        """Return whether the next message may have a body: its head says so."""
        return True

    async def discard_input(self) -> None:
        """After the last response, drop what the client still sends, until it closes or a bound is reached.

        Returns at once if nothing more came than the request responded to. Cancelled when the connection is lost.
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if not self.has_next and not has_input(transport):
            return
        self._messages.clear()
        self._discarding = asyncio.get_running_loop().create_future()
        self._discardable_bytes = DISCARD_BYTES
        set_receive_size(transport, DISCARD_STEP_BYTES)
        with contextlib.suppress(OSError):
            if transport.can_write_eof():
                # Raises where the kernel knows of a reset that the transport has yet to read.
                transport.write_eof()
            if not transport.is_reading():
                self._resume_transport_reading()
            async with asyncio.timeout(DISCARD_SECONDS):
                await self._discarding

    def break_body(self, stream: StreamReader, fault: Fault) -> None:
        """Set the fault on a body that is malformed. The connection closes after the response."""
        stream.set_exception(RequestPayloadError(str(fault)))

    def pause_reading(self) -> None:
        """Stop receiving: a body is not read as fast as it comes."""
        if self._feed.decoder is None:
            super().pause_reading()
            return
        # The parser is not parsing this body: paused, it would stop within the next one.
        self._reading_paused = True
        self._pause_transport_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Receive again, if a body has paused that: aiohttp's streams call this with every read and at their end."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def take_decoder(self) -> ChunkedDecoder | None:
        """Return the decoder of the chunked body being received, to read its rest below the transport."""
        return self._feed.take_decoder()

    def give_back_decoder(self) -> None:
        """Continue where the decoder stopped, at the body's end or before it."""
        self._feed.give_back()

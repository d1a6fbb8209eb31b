"""Feeds what a connection receives to aiohttp's parser, and chunked bodies to our decoder; in turns.

aiohttp parses everything that was received at once: all pipelined heads, all interim responses, a call to Python for
every chunk. Here each head is fed by itself, up to its blank line. A chunked body is decoded step by step, and
aiohttp's parser sees an empty one in its place, after which it is ready for the next message. Between two steps other
bodies get their turns. Verified against aiohttp 3.14.5; delete when its parser does a bounded amount of work per call.

    received bytes    are fed to                                            asks for a turn
    ----------------  ----------------------------------------------------  ---------------
    a head            aiohttp's parser, up to the blank line                unless it is the first received
    a body of known   aiohttp's parser, as received; what came together     after each receive
    length            with its head, together with it
    a chunked body    the decoder, whose data goes to the body's stream     before each step
    its last chunk    the decoder; an empty body goes to aiohttp's parser   never
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader

from gateway.errors import Fault
from gateway.http.chunked import ChunkedDecoder

#: A body until the end of the connection.
UNTIL_CLOSE: Final = sys.maxsize
#: What ends a head. aiohttp's parser accepts the second in responses only.
_BLANK_LINES: Final = (b"\n\r\n", b"\n\n")
#: The value of the only Content-Length of a head, in lower case.
_LENGTH: Final = re.compile(rb"\ncontent-length:[ \t]*+([0-9]{1,18})[ \t]*+\r\n")
#: Heads that begin like this are fed by themselves: their length may not be what follows them.
_BODILESS: Final = (b"connect ", *(b"http/1.%d %d" % (minor, code) for minor in (0, 1) for code in (1, 204, 304)))
_EMPTY_BODY: Final = b"0\r\n\r\n"


class Turns(Protocol):
    """When steps may be taken: see `gateway.transfer.turns`."""

    def has_time(self) -> bool:
        """Return whether another step may be taken now."""
        ...

    async def wait(self) -> None:
        """Wait until another step may be taken."""
        ...

    def call(self, step: Callable[[], None], /) -> None:
        """Call `step` when there is time."""
        ...


class BodyHead(NamedTuple):
    """A body that begins: its stream, and its length in bytes; None if it is chunked."""

    stream: StreamReader
    length: int | None


class Parsing(Protocol):
    """The connection that is fed: an aiohttp protocol."""

    def parse(self, data: bytes, /) -> BodyHead | None:
        """Feed aiohttp's parser; return the body that follows if `data` ended a head that has one."""
        ...

    def may_parse_head(self) -> bool:
        """Return whether another head may be parsed. `continue_parsing` is called when it may again."""
        ...

    def may_have_body(self) -> bool:
        """Return whether the next message may have the body that its head declares: not the response to HEAD."""
        ...

    def break_body(self, stream: StreamReader, fault: Fault, /) -> None:
        """Set the fault on a body that is malformed. Nothing that is received after it is parsed."""
        ...


class MessageFeed:
    """What one connection has received and not parsed."""

    def __init__(self, connection: Parsing, protocol: BaseProtocol, turns: Turns, *, is_lenient: bool) -> None:
        self._connection = connection
        #: The same connection: its flow control.
        self._protocol = protocol
        self._turns = turns
        self._is_lenient = is_lenient
        self._unparsed = b""
        #: Bytes parsed of the head that is being received.
        self.head_bytes = 0
        #: The end of what was parsed of a head: its blank line may be divided between two receives.
        self._parsed_tail = b""
        #: Bytes of a body that aiohttp's parser has yet to see.
        self._sized_bytes = 0
        self._body: StreamReader | None = None
        #: Decodes the chunked body that is being received; None without one.
        self.decoder: ChunkedDecoder | None = None
        self._is_decoder_taken = False
        self._is_waiting = False
        self._is_broken = False
        self._is_closed = False
        #: Whether the connection is lost: what has arrived is parsed without further turns.
        self.is_ending = False

    @property
    def is_idle(self) -> bool:
        """Whether everything that was received was parsed to the end of a message."""
        return not (self._unparsed or self._parsed_tail or self._sized_bytes or self.decoder or self._is_broken)

    @property
    def has_unparsed(self) -> bool:
        """Whether something that was received waits to be parsed."""
        return bool(self._unparsed)

    @property
    def is_within_head(self) -> bool:
        """Whether the beginning of a head was parsed, and not its end."""
        return bool(self._parsed_tail)

    def start_message(self) -> None:
        """Expect a head next, whatever came before."""
        self._parsed_tail, self._sized_bytes, self.head_bytes = b"", 0, 0
        self._body = self.decoder = None

    def close(self) -> None:
        """Parse nothing any more: the connection is lost. Also drops the reference cycle with it."""
        self._unparsed = b""
        self._body = self.decoder = None
        if not self._is_closed:
            self._is_broken = self._is_closed = True
            del self._connection, self._protocol

    def receive(self, data: bytes) -> None:
        """Parse what was received, or keep it until its turn."""
        if self._is_broken:
            return
        self._unparsed = self._unparsed + data if self._unparsed else data
        if self._is_waiting and not (self._sized_bytes or self.is_ending):
            self._protocol._pause_transport_reading()
        else:
            self.continue_parsing()

    def continue_parsing(self, *, has_turn: bool = False) -> None:
        """Parse what is kept, as far as there is time and aiohttp's limits allow; a step at least with `has_turn`."""
        # The first head of a receive is not asked for: a small exchange never waits.
        may_step, has_fed_body = has_turn or self.decoder is None, False
        while self._can_decode() if self.decoder is not None else self._unparsed and not self._is_broken:
            # A body of known length is never kept: its rest may be read below the transport.
            if not self._sized_bytes:
                if self.decoder is None and not self._connection.may_parse_head():
                    break
                if not (may_step or self.is_ending or self._turns.has_time()):
                    self._wait()
                    return
                may_step = False
            if self.decoder is not None and self._body is not None:
                self._decode(self.decoder, self._body)
            else:
                has_fed_body |= self._parse()
        if has_fed_body and self._is_body_open and not (self.is_ending or self._turns.has_time()):
            self._wait()

    def take_decoder(self) -> ChunkedDecoder | None:
        """Return the decoder of a chunked body whose rest is read below the transport, until `give_back`.

        None without one, and while received bytes wait for their turn: reading below would overtake them.
        """
        if self._unparsed:
            return None
        self._is_decoder_taken = self.decoder is not None
        return self.decoder

    def give_back(self) -> None:
        """Continue where the decoder stopped."""
        self._is_decoder_taken = False
        if self._is_broken:
            return
        if self.decoder is not None and self._body is not None and self.decoder.is_ended:
            self._end_chunked(self.decoder)
        self.continue_parsing()

    def _can_decode(self) -> bool:
        """Return whether there is something of the chunked body to decode that may be decoded now."""
        if self._is_broken or self._is_decoder_taken or (self._protocol._reading_paused and not self.is_ending):
            return False
        return bool(self._unparsed) or (self.decoder is not None and self.decoder.has_more)

    @property
    def _is_body_open(self) -> bool:
        """Whether more of a body of known length, or until the close, is to come."""
        return self._sized_bytes > 0 and self._body is not None and not self._body.is_eof()

    def _parse(self) -> bool:
        """Feed aiohttp's parser: the rest of a body, or a head up to its end and what came of its body with it.

        Returns whether bytes of a body were fed.
        """
        data = self._unparsed
        size = head_bytes = 0
        if self._sized_bytes:
            size = min(self._sized_bytes, len(data))
            self._sized_bytes -= size
        else:
            size = head_bytes = _find_blank_line(data) if not self._parsed_tail else -1
            if size < 0:
                size = head_bytes = self._find_divided_end(data)
            elif size < len(data):
                size += self._count_body(data, size)
            self.head_bytes += head_bytes
        if size == len(data):
            self._unparsed, step = b"", data
        else:
            self._unparsed, step = data[size:], data[:size]
        body = self._connection.parse(step)
        if not self._parsed_tail:
            self.head_bytes = 0
        if body is not None:
            self._begin_body(body, size - head_bytes)
        return size > head_bytes

    def _begin_body(self, body: BodyHead, fed_bytes: int) -> None:
        """Expect the body of the head that was fed, with `fed_bytes` of it."""
        self._body = body.stream
        if body.length is not None:
            self._sized_bytes = body.length - fed_bytes
            return
        self.decoder = ChunkedDecoder(is_lenient=self._is_lenient)
        # As aiohttp's parser does at the first chunk; it would refuse to after data was fed.
        body.stream.begin_http_chunk_receiving()

    def _count_body(self, data: bytes, head_bytes: int) -> int:
        """Return how many bytes after a head are of its body without a doubt: all of them, or none.

        A message that arrived whole is fed in one step, as is the beginning of a long one. Nothing is left to the
        parser's choice: the head declares one length, in the plainest way, and no more than that has come.
        """
        head = data[:head_bytes].lower()
        found = _LENGTH.search(head)
        if found is None or head.startswith(_BODILESS) or head.count(b"\ncontent-length") > 1:
            return 0
        if b"\ntransfer-encoding" in head or b"\nupgrade" in head:
            return 0
        rest_bytes = len(data) - head_bytes
        return rest_bytes if rest_bytes <= int(found[1]) and self._connection.may_have_body() else 0

    def _find_divided_end(self, data: bytes) -> int:
        """Return how many bytes to parse of a head whose end may be divided between receives: up to it, or all."""
        tail, self._parsed_tail = self._parsed_tail, b""
        if tail:
            end = _find_blank_line(tail + data[:2])
            if end >= 0:
                return end - len(tail)
        end = _find_blank_line(data)
        if end >= 0:
            return end
        # Of both: one byte may have come at a time.
        self._parsed_tail = (tail + data)[-2:] if len(data) == 1 else data[-2:]
        return len(data)

    def _decode(self, decoder: ChunkedDecoder, body: StreamReader) -> None:
        received, self._unparsed = self._unparsed, b""
        try:
            data = decoder.decode(received)
        except Fault as fault:
            self._is_broken = True
            self.decoder = None
            self._connection.break_body(body, fault)
            return
        body.feed_data(data)
        if decoder.is_ended:
            self._end_chunked(decoder)

    def _end_chunked(self, decoder: ChunkedDecoder) -> None:
        """End a chunked body; what came after it is yet to be parsed."""
        self._unparsed = decoder.rest + self._unparsed
        self._body = self.decoder = None
        self._connection.parse(_EMPTY_BODY)

    def _wait(self) -> None:
        """Receive nothing until there is a turn."""
        self._protocol._pause_transport_reading()
        if not self._is_waiting:
            self._is_waiting = True
            self._turns.call(self._take_turn)

    def _take_turn(self) -> None:
        self._is_waiting = False
        if self._is_broken or self._protocol.transport is None:
            return
        protocol = self._protocol
        self.continue_parsing(has_turn=True)
        if not (self._is_waiting or protocol._reading_paused or protocol._buffer_paused):
            protocol._resume_transport_reading()


def _find_blank_line(data: bytes) -> int:
    """Return the position after the first blank line, -1 without one."""
    crlf, lf = _BLANK_LINES
    end = data.find(crlf)
    other = data.find(lf, 0, end if end >= 0 else len(data))
    if other >= 0:
        return other + len(lf)
    return end + len(crlf) if end >= 0 else -1

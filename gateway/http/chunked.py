"""A decoder of the chunked transfer coding (RFC 9112 section 7.1): the only one, for requests and responses.

aiohttp's parser calls Python for every chunk, so a receive of 256 KiB in chunks of one byte would keep the event loop
busy for a tenth of a second. Here a call decodes a bounded number of chunks and keeps the rest, and runs of equally
small chunks are decoded in C.

Invariant: the output is the data in order, each byte once; malformed input raises before any byte after it is
returned, and as soon as no further bytes can make it valid.

Requests are held to the grammar of aiohttp's parser (llhttp, strict), which is the RFC's without the white space that
it calls bad, and to limits of size. In responses, white space after a size, any extension and any trailer are accepted.
Line breaks without CR never are: parsers disagree on where the data begins after one.
Go bounds framing bytes by the data they frame; here they cost so little that the limits of a line suffice.

Rejected: to receive less at once while chunks are tiny. A call is bounded by its work, whatever was received. A body in
chunks of one byte costs 8.2 ms of CPU time per MiB received, with receives of 16 KiB 9.4 ms, of 4 KiB 13.7 ms; one in
chunks of one to three bytes by turns 242, 192 and 198 ms, where the body that costs most gains a fifth.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from gateway.errors import Fault, FaultKind
from gateway.http.foreseen import MIN_FORESEEN_BYTES, ForeseenChunks

#: Work per call: decoding a chunk by itself counts as `_CHUNK_COST`, one in a run that is decoded in C as 1.
STEP_WORK: Final = 4096
_CHUNK_COST: Final = 8
#: Chunks shorter than this are cheaper to copy twice than to look at through a memoryview.
_VIEWED_BYTES: Final = 512
#: What follows foreseen chunks is returned together with them up to this length, by itself if it is longer.
_JOINED_BYTES: Final = 64 * 1024
#: Limits for a chunk size with its extensions and the line breaks around it, and for all trailer fields together.
_MAX_LINE_BYTES: Final = 4096
_MAX_TRAILER_BYTES: Final = 16 * 1024

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*'
_EXTENSIONS: Final = rb"(?:;" + _TOKEN + rb"+(?:=(?:" + _QUOTED + rb'"|' + _TOKEN + rb"*))?)*"
# Sixteen digits fit any length. Signs, underscores and "0x" are refused, although int() accepts them.
_SIZE: Final = rb"0*[0-9A-Fa-f]{1,16}"
_VALUE: Final = rb"[\t\x20-\x7e\x80-\xff]*"


@dataclass(frozen=True, slots=True)
class _Grammar:
    """The lines between the data of chunks, and what may be the beginning of such a line."""

    #: The line break after the last chunk's data, and the next size.
    size: re.Pattern[bytes]
    partial_size: re.Pattern[bytes]
    trailer: re.Pattern[bytes]
    partial_trailer: re.Pattern[bytes]


_STRICT: Final = _Grammar(
    re.compile(rb"\r\n(" + _SIZE + rb")" + _EXTENSIONS + rb"\r\n"),
    re.compile(
        rb"\r?|\r\n(?:0*[0-9A-Fa-f]{0,16}|%b%b(?:\r?|;(?:%b+(?:=%b\\?)?)?))" % (_SIZE, _EXTENSIONS, _TOKEN, _QUOTED)
    ),
    # Framing in a trailer is refused: a recipient that merges trailers into the headers sees another message.
    re.compile(rb"(?!(?i:content-length|transfer-encoding):)%b+:%b\r\n|\r\n" % (_TOKEN, _VALUE)),
    re.compile(rb"(?!(?i:content-length|transfer-encoding):)%b+(?::%b\r?)?|\r?" % (_TOKEN, _VALUE)),
)
_LENIENT: Final = _Grammar(
    re.compile(rb"\r\n(" + _SIZE + rb")[ \t]*(?:;[^\r\n]*)?\r\n"),
    re.compile(rb"\r?|\r\n(?:0*[0-9A-Fa-f]{0,16}|" + _SIZE + rb"[ \t]*(?:;[^\r\n]*)?\r?)"),
    re.compile(rb"[^\r\n]*\r\n"),
    re.compile(rb"[^\r\n]*\r?"),
)
#: By size: a run of chunks of that size, each with the line break before it.
_RUNS: Final = tuple(
    re.compile(rb"(?:\r\n[%x%X]\r\n.{%d}){2,%d}+" % (size, size, size, STEP_WORK), re.DOTALL) for size in range(16)
)


class ChunkedDecoder:
    """Decodes one chunked body. After a Fault BAD_FRAMING the decoder must not be used again.

    `decode` what was received; while `has_more`, decode b"" for what was kept. `rest` is valid after the end.
    """

    def __init__(self, *, is_lenient: bool = False) -> None:
        self._grammar = _LENIENT if is_lenient else _STRICT
        # A line break precedes each size; the first one is that of the head.
        self._text = b"\r\n"
        self._position = 0
        #: Bytes of the current chunk's data that were not received yet.
        self._remaining = 0
        self._in_trailers = False
        self._trailer_bytes = 0
        #: Whether the body is complete.
        self.is_ended = False
        #: Whether the last call stopped before the end of what was received.
        self.has_more = False
        #: Bytes of data returned so far.
        self.decoded_bytes = 0
        #: The last line, with the line break before it, of a chunk that is long enough to be foreseen; its size, and
        #: whether the line before was the same.
        self._line = b""
        self._line_size = 0
        self._is_repeated = False

    @property
    def rest(self) -> bytes:
        """What was received after the end of the body."""
        return self._text[self._position :]

    def decode(self, received: bytes) -> bytes:
        """Return the next data, joined; b"" if there is none yet. Raises Fault BAD_FRAMING.

        Joining costs one copy, which is cheaper than passing chunks on one by one: chunks of 256 KiB were measured
        at 1.4 times the CPU time.
        """
        if not self._text and len(received) < self._remaining:
            self._remaining -= len(received)
            self.decoded_bytes += len(received)
            return received
        if received:
            self._text = self._text[self._position :] + received if self._text else received
            self._position = 0
        data = self._decode_step()
        self.decoded_bytes += len(data)
        if self._position == len(self._text):
            self._text, self._position = b"", 0
        return data

    def foresee(self, most: int) -> ForeseenChunks | None:
        """Return room for the next chunks, with at most that much data, if the last two were of one size.

        Valid unless `has_more`. What is received into it is to be passed to `take`.
        """
        if not self._is_repeated or self._remaining >= most:
            return None
        begun = self.rest
        # After the data of a chunk there is never more than the beginning of a line.
        if not self._line.startswith(begun):
            return None
        return ForeseenChunks(self._line, self._line_size, most, remaining=self._remaining, begun=len(begun))

    def take(self, foreseen: ForeseenChunks, count: int) -> bytes:
        """Return the data of `count` bytes that were received into what `foresee` returned, see `decode`."""
        taken = foreseen.take(count)
        data, rest = taken.data, taken.rest
        self._text, self._position, self._remaining = rest, 0, taken.remaining
        self.decoded_bytes += len(data)
        if not rest:
            return data
        if data and len(rest) > _JOINED_BYTES:
            # Both are held already; joined they would be once more.
            self.has_more = True
            return data
        more = self.decode(b"")
        return data + more if more else data

    def _decode_step(self) -> bytes:
        """Decode a step's work of what was received, or everything."""
        text, end = self._text, len(self._text)
        view = memoryview(text)
        pieces: list[bytes | memoryview] = []
        work, position, last_size = STEP_WORK, self._position, -1
        read_size = self._grammar.size.match
        while position < end and not self.is_ended:
            if work <= 0:
                break
            work -= _CHUNK_COST
            if self._remaining:
                stop = min(position + self._remaining, end)
                pieces.append(view[position:stop])
                self._remaining -= stop - position
                position = stop
                continue
            if self._in_trailers:
                following = self._read_trailer(text, position)
                if following < 0:
                    break
                position = following
                continue
            found = read_size(text, position)
            if found is None:
                _check_partial(self._grammar.partial_size, text, position, _MAX_LINE_BYTES)
                break
            start = found.end()
            if start - position > _MAX_LINE_BYTES:
                raise _malformed()
            size = int(found[1], 16)
            if size == last_size and size < len(_RUNS) and (run := _RUNS[size].match(text, position)):
                pieces.append(_join_run(run[0], size))
                work -= (run.end() - position) // (size + 5)
                position = run.end()
                continue
            last_size = size
            if size >= MIN_FORESEEN_BYTES:
                self._is_repeated = found[0] == self._line
                self._line, self._line_size = found[0], size
            else:
                self._is_repeated = False
            self._in_trailers = not size
            position = min(start + size, end)
            pieces.append(text[start:position] if size < _VIEWED_BYTES else view[start:position])
            self._remaining = start + size - position
        self._position = position
        self.has_more = work <= 0 and position < end and not self.is_ended
        return b"".join(pieces)

    def _read_trailer(self, text: bytes, position: int) -> int:
        """Read one line of the trailers and return the position after it, -1 if its end is not received yet."""
        found = self._grammar.trailer.match(text, position)
        if found is None:
            _check_partial(self._grammar.partial_trailer, text, position, _MAX_TRAILER_BYTES)
            return -1
        self._trailer_bytes += found.end() - position
        if self._trailer_bytes > _MAX_TRAILER_BYTES:
            raise _malformed()
        self.is_ended = found[0] == b"\r\n"
        return found.end()


def _join_run(run: bytes, size: int) -> bytes:
    """Return the data of a run of chunks of `size` bytes, each after CRLF, one digit and CRLF."""
    count = len(run) // (size + 5)
    data = bytearray(count * size)
    for index in range(size):
        data[index::size] = run[5 + index :: size + 5]
    return bytes(data)


def _check_partial(beginning: re.Pattern[bytes], text: bytes, position: int, most: int) -> None:
    """Raise Fault BAD_FRAMING unless more bytes can complete the line."""
    if len(text) - position > most or beginning.fullmatch(text, position) is None:
        raise _malformed()


def _malformed() -> Fault:
    return Fault(
        FaultKind.BAD_FRAMING,
        "The chunked body is malformed: write each chunk as hex size, CRLF, data, CRLF (RFC 9112 section 7.1).",
    )

"""A decoder of the chunked transfer coding (RFC 9112 section 7.1), stricter than the RFC requires of a recipient.

The direct lane reads request bodies from the socket and decodes them here instead of in aiohttp's parser.

Invariant: the output is the data in order, each byte once; malformed input raises before any byte after it is
returned. aiohttp's parser reads the beginning of every body and this decoder decodes the same bytes, so that it can
continue where the parser stops; both must agree on every byte up to there, see `gateway.downstream.body`.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from gateway.errors import Fault, FaultKind

#: Limits for a chunk size with its extensions, and for all trailer fields together.
_MAX_LINE_BYTES: Final = 4096
_MAX_TRAILER_BYTES: Final = 16 * 1024
# Sixteen digits fit any length. Signs, underscores and "0x" are refused, although int() accepts them.
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n")


class _State(enum.Enum):
    """The element of the grammar that is expected next."""

    SIZE = enum.auto()
    DATA = enum.auto()
    DATA_END = enum.auto()
    TRAILER = enum.auto()
    END = enum.auto()


class ChunkedDecoder:
    """Decodes one chunked body. After a Fault BAD_FRAMING the decoder must not be used again."""

    def __init__(self) -> None:
        self._state = _State.SIZE
        self._remaining = 0
        self._partial_line = b""
        self._trailer_bytes = 0
        #: Bytes of data returned so far.
        self.decoded_bytes = 0

    @property
    def is_ended(self) -> bool:
        """Whether the body is complete. Bytes after it are ignored."""
        return self._state is _State.END

    def decode(self, received: bytes) -> bytes:
        """Return the data in the received bytes, joined; b"" if they contain none. Raises Fault BAD_FRAMING.

        Joining costs one copy, which is cheaper than passing chunks on one by one: chunks of 256 KiB were measured
        at 1.4 times the CPU time.
        """
        if self._state is _State.DATA and len(received) <= self._remaining and not self._partial_line:
            self._remaining -= len(received)
            self.decoded_bytes += len(received)
            if not self._remaining:
                self._state = _State.DATA_END
            return received
        pieces = self._split(self._partial_line + received if self._partial_line else received)
        data = b"".join(pieces)
        self.decoded_bytes += len(data)
        return data

    def _split(self, text: bytes) -> list[memoryview]:
        pieces: list[memoryview] = []
        view = memoryview(text)
        position, end = 0, len(text)
        self._partial_line = b""
        while position < end and self._state is not _State.END:
            if self._state is _State.DATA:
                size = min(self._remaining, end - position)
                pieces.append(view[position : position + size])
                position += size
                self._remaining -= size
                if not self._remaining:
                    self._state = _State.DATA_END
                continue
            following = self._read_line(text, position)
            if following < 0:
                self._partial_line = text[position:]
                break
            position = following
        return pieces

    def _read_line(self, text: bytes, position: int) -> int:
        """Parse one line and return the position after it, -1 if its end is not received yet."""
        if self._state is _State.DATA_END:
            if text.startswith(b"\r\n", position):
                self._state = _State.SIZE
                return position + 2
            return self._check_partial_line(text, position, 1)
        return self._read_size(text, position) if self._state is _State.SIZE else self._read_trailer(text, position)

    def _read_size(self, text: bytes, position: int) -> int:
        found = _SIZE.match(text, position)
        if found is None:
            return self._check_partial_line(text, position, _MAX_LINE_BYTES)
        if found.end() - position > _MAX_LINE_BYTES:
            raise _malformed()
        self._remaining = int(found[1], 16)
        self._state = _State.DATA if self._remaining else _State.TRAILER
        return found.end()

    def _read_trailer(self, text: bytes, position: int) -> int:
        if text.startswith(b"\r\n", position):
            self._state = _State.END
            return position + 2
        found = _TRAILER.match(text, position)
        if found is None:
            return self._check_partial_line(text, position, _MAX_TRAILER_BYTES)
        self._trailer_bytes += found.end() - position
        if self._trailer_bytes > _MAX_TRAILER_BYTES:
            raise _malformed()
        return found.end()

    def _check_partial_line(self, text: bytes, position: int, most: int) -> int:
        """Return -1 if more bytes can complete the line. Raises Fault BAD_FRAMING if they cannot."""
        size = len(text) - position
        if size > most or text.find(b"\n", position) >= 0:
            raise _malformed()
        if self._state is _State.DATA_END and text[position:] != b"\r":
            raise _malformed()
        return -1


def _malformed() -> Fault:
    return Fault(
        FaultKind.BAD_FRAMING,
        "The chunked body is malformed: write each chunk as hex size, CRLF, data, CRLF (RFC 9112 section 7.1).",
    )

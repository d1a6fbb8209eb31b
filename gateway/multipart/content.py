"""The content object under MultipartReader: the bytes not yet read, and the strictness about lines.

Law: a byte leaves here only once, in order, as a line or as data of a part; between calls it holds one chunk and at
most one delimiter or one line. MultipartReader accepts lines that end in a bare LF, endless preambles and whatever
follows the closing delimiter; parsers behind us read such bodies differently, so they are refused here
(RFC 2046 section 5.1.1).

Searching: `bytes.find` of the whole boundary, over the chunk as it came. Chunks are never joined but for a
delimiter that straddles two of them.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from gateway.config import Limits
from gateway.errors import Fault, FaultKind
from gateway.http.limits import limit_fault

More = Callable[[], Awaitable[bytes]]

#: Longest line outside of the parts' data: aiohttp's own limit for a field.
_MAX_LINE_BYTES: Final = 8190
_BARE: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n")


class FormContent:
    """Bytes of a multipart/form-data body, pulled through `more`, which returns b"" at the end.

    Raises Fault BAD_MULTIPART, or a limit's, from every reading method; after that it must not be read again.
    """

    def __init__(self, boundary: bytes, limits: Limits, route: str, more: More, *, is_strict: bool = False) -> None:
        self._more = more
        self._is_strict = is_strict
        self._pulled_bytes = 0
        self._dash_boundary = b"--" + boundary
        self._delimiter = b"\r\n--" + boundary
        self._close = b"--" + boundary + b"--"
        self._limits = limits
        self._route = route
        self._chunk = b""
        self._at = 0
        self._is_ended = False
        self._is_closed = False
        self._is_before_first = True
        self._head_bytes = 0

    async def readline(self, *, max_line_length: int | None = None) -> bytes:
        """Return one line with its CRLF, or b"" behind the closing delimiter (where the epilogue stays unread)."""
        del max_line_length  # The limits of heads and preambles below are tighter.
        if self._is_closed:
            return b""
        line = await self._take_line()
        stem = line.rstrip(b" \t\r\n")
        if stem == self._close:
            self._is_closed = True
        elif stem == self._dash_boundary:
            self._is_before_first = False
            self._head_bytes = 0
        elif line.startswith(self._dash_boundary):
            raise Fault(FaultKind.BAD_MULTIPART, "A boundary line has something behind the boundary: end it with CRLF.")
        elif not line:
            raise self._cut_short()
        elif self._is_before_first and self._dash_boundary in line:
            # Werkzeug finds the first boundary anywhere: the parts behind it would be hidden from us.
            raise Fault(FaultKind.BAD_MULTIPART, "The first boundary stands amid a line: begin a line with it.")
        else:
            self._count_head(len(line))
            if self._is_strict:
                self._refuse_odd_line(line)
        if not line.endswith(b"\r\n") and not self._is_closed:
            raise self._cut_short()
        return line

    @property
    def position(self) -> int:
        """How many bytes of the body were read."""
        return self._pulled_bytes - (len(self._chunk) - self._at)

    def _refuse_odd_line(self, line: bytes) -> None:
        if self._is_before_first:
            raise Fault(FaultKind.BAD_MULTIPART, "Something stands before the first boundary: begin the form with it.")
        if line[:1] in b" \t" and line.strip():
            raise Fault(FaultKind.BAD_MULTIPART, "A header field of a part is folded over two lines: use one.")

    async def read_data(self) -> tuple[bytes, bool]:
        """Return some data of a part, and whether it is the last of that part; data may be b"" only then.

        What follows the last of it is the boundary line.
        """
        delimiter, boundary = self._delimiter, self._dash_boundary
        while True:
            chunk, at = self._chunk, self._at
            found = chunk.find(boundary, at)
            if found >= 0:
                if chunk.startswith(b"\r\n", found - 2) and found - 2 >= at:
                    self._at = found
                    return chunk[at : found - 2], True
                self._refuse_look_alike(chunk, found, at)
                # The text of the boundary amid a line is data.
                end = found + len(boundary)
                self._at = end
                if data := chunk[at:end]:
                    return data, False
            keep = self._straddle(chunk, at, len(delimiter))
            if keep > at:
                # Handed out before more is asked for: a limit it breaks must be seen before it is passed on.
                self._at = keep
                return (chunk if not at and keep == len(chunk) else chunk[at:keep]), False
            if not await self._pull():
                raise self._cut_short()

    async def refuse_shared_line(self) -> None:
        """Refuse a part whose empty line doubles as the line break of the next boundary.

        RFC 2046's grammar allows it for an empty part, but python-multipart and others take the boundary for data
        then and swallow the next part: nobody sends it without intent.
        """
        boundary = self._dash_boundary
        while boundary.startswith(begun := self._chunk[self._at : self._at + len(boundary)]):
            if len(begun) < len(boundary) and await self._pull():
                continue
            if len(begun) < len(boundary):
                return
            raise Fault(
                FaultKind.BAD_MULTIPART, "A part's header fields are followed by a boundary without a line break."
            )

    async def read_epilogue(self) -> None:
        """Read what follows the closing delimiter to its end. Raises Fault if it holds another delimiter."""
        tail = b""
        while True:
            chunk = self._chunk[self._at :]
            self._chunk, self._at = b"", 0
            if self._is_strict and chunk.strip(b"\r\n"):
                raise Fault(FaultKind.BAD_MULTIPART, "Something follows the closing boundary: end the form with it.")
            window = tail + chunk
            if self._dash_boundary in window:
                raise Fault(
                    FaultKind.BAD_MULTIPART, "Another boundary follows the closing one: send one form a request."
                )
            tail = window[-len(self._dash_boundary) :]
            if not await self._pull():
                return

    async def read(self, n: int = -1) -> bytes:
        """Refuse: parts are read through read_data only."""
        raise NotImplementedError(f"read({n}) of a form: parts are read by PartReader")

    def unread_data(self, data: bytes) -> None:
        """Refuse: nothing is ever pushed back."""
        raise NotImplementedError(f"{len(data)} bytes pushed back: PartReader reads up to the delimiter only")

    def at_eof(self) -> bool:
        """Say whether every byte was read."""
        return self._is_ended and self._at >= len(self._chunk)

    async def _pull(self) -> bool:
        """Add the next chunk to what is unread; say whether there was one."""
        fresh = await self._more()
        if not fresh:
            self._is_ended = True
            return False
        self._pulled_bytes += len(fresh)
        rest = self._chunk[self._at :]
        self._chunk, self._at = (rest + fresh if rest else fresh), 0
        return True

    async def _take_line(self) -> bytes:
        while (end := self._chunk.find(b"\n", self._at)) < 0:
            if len(self._chunk) - self._at > _MAX_LINE_BYTES:
                raise self._line_too_long()
            if not await self._pull():
                end = len(self._chunk) - 1
                break
        line = self._chunk[self._at : end + 1]
        self._at = end + 1
        if len(line) > _MAX_LINE_BYTES:
            raise self._line_too_long()
        if _BARE.search(line):
            raise Fault(FaultKind.BAD_MULTIPART, "A line outside of the parts' data ends in a bare CR or LF: use CRLF.")
        return line

    def _line_too_long(self) -> Fault:
        if self._is_before_first:
            return Fault(
                FaultKind.BAD_MULTIPART, "The first boundary was not found: it does not match the Content-Type."
            )
        return Fault(
            FaultKind.PART_HEADERS_TOO_LARGE,
            f"A header field of a part has more than {_MAX_LINE_BYTES} bytes: send a shorter one.",
            facts={"limit": _MAX_LINE_BYTES},
        )

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        limit = self._limits.max_part_headers
        if self._head_bytes <= limit:
            return
        raise limit_fault(
            FaultKind.PART_HEADERS_TOO_LARGE,
            self._route,
            "limits.max_part_headers",
            limit,
            self._head_bytes,
            what="The preamble before the first part" if self._is_before_first else "The header block of a part",
        )

    def _cut_short(self) -> Fault:
        if self._is_before_first:
            return Fault(
                FaultKind.BAD_MULTIPART, "The body ends before its first boundary: it does not match the Content-Type."
            )
        return Fault(FaultKind.BAD_MULTIPART, "The body ends without its closing boundary: it was cut short.")

    def _refuse_look_alike(self, chunk: bytes, found: int, at: int) -> None:
        """Refuse a boundary behind a bare line break: Werkzeug and others would take it for a delimiter."""
        if found > at and chunk[found - 1] in b"\r\n":
            raise Fault(FaultKind.BAD_MULTIPART, "A boundary follows a bare CR or LF: parsers disagree about it.")

    def _straddle(self, chunk: bytes, at: int, longest: int) -> int:
        """Return where a delimiter may begin that the end of the chunk cuts off, or its length.

        A line break of any kind counts, so that a bare one is seen too.
        """
        size = len(chunk)
        at = max(at, size - longest + 1)
        while at < size:
            if chunk[at] in b"\r\n" and self._may_begin(chunk[at:]):
                return at
            at += 1
        return size

    def _may_begin(self, tail: bytes) -> bool:
        return any(
            (line_break + self._dash_boundary).startswith(tail) or tail == line_break for line_break in _LINE_BREAKS
        )


_LINE_BREAKS: Final = (b"\r\n", b"\r", b"\n")

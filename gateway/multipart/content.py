"""The content object of MultipartReader: it splits a form's body into lines and part data, and checks the lines.

Invariant: every byte is returned once, in order, as part of a line or as data of a part. Between calls the object
holds what was not returned of one chunk, and at most one delimiter or one line more. MultipartReader accepts lines that
end in a bare LF, preambles of any size and anything after the closing delimiter; parsers of upstreams differ on such
bodies, so they are refused here (RFC 2046 section 5.1.1).

The search is for the whole boundary in the chunk as received (`search`). A chunk that ends in what may begin a
delimiter, any line break, is joined with the next only where a boundary goes on there, or the next is short: large
chunks are costly to copy, and of a file of lines many end so. A piece of data ends with its part, with its chunk or
before such an end, however many bytes look like a boundary.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from gateway.config import Limits
from gateway.errors import Fault, FaultKind
from gateway.http.limits import limit_fault
from gateway.multipart.search import has_boundary

#: Limit for a line outside of part data: aiohttp's limit for a header line.
_MAX_LINE_BYTES: Final = 8190
#: Lines and pieces of data between two turns: a part with two headers is about five.
TURN_TOKENS: Final = 64
#: Bytes searched between two turns: where nearly everything looks like a boundary, 1 MiB takes 10 ms.
SEARCHED_BYTES: Final = 2**20
_LINE_BREAK: Final = re.compile(rb"[\r\n]")
_BARE: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n")


class FormSource(Protocol):
    """Where the bytes of a form come from."""

    async def pull(self) -> bytes:
        """Return the next chunk, b"" at the end."""
        ...

    async def take_turn(self) -> None:
        """Let other bodies work: called after every few lines and pieces of data."""
        ...


class FormContent:
    """The unread bytes of a multipart/form-data body.

    Every read method raises Fault BAD_MULTIPART, or the fault of a limit; after a fault no method may be called.
    """

    def __init__(
        self, boundary: bytes, limits: Limits, route: str, source: FormSource, *, is_strict: bool = False
    ) -> None:
        self._source = source
        #: Lines and pieces of data returned since the last turn.
        self._token_count = 0
        self._is_strict = is_strict
        self._pulled_bytes = 0
        self._dash_boundary = b"--" + boundary
        self._delimiter = b"\r\n--" + boundary
        self._close = b"--" + boundary + b"--"
        self._limits = limits
        self._route = route
        self._chunk = b""
        self._offset = 0
        #: What follows the chunk, where that is the beginning of a large one.
        self._following = b""
        #: Whether the chunk was searched, and no boundary begins in it.
        self._has_none = False
        self._is_ended = False
        self._is_closed = False
        self._is_before_first = True
        self._head_bytes = 0

    async def readline(self, *, max_line_length: int | None = None) -> bytes:
        """Return one line with its CRLF, or b"" after the closing delimiter; `read_epilogue` reads what follows."""
        del max_line_length  # The limits for heads and preambles are checked below, and are lower.
        if self._is_closed:
            return b""
        await self._count_token()
        line = await self._read_line()
        stem = line.rstrip(b" \t\r\n")
        if stem == self._close:
            self._is_closed = True
        elif stem == self._dash_boundary:
            self._is_before_first = False
            self._head_bytes = 0
        elif line.startswith(self._dash_boundary):
            raise Fault(FaultKind.BAD_MULTIPART, "A boundary line has text after the boundary: end it with CRLF.")
        elif not line:
            raise self._truncated()
        elif self._is_before_first and self._dash_boundary in line:
            # Werkzeug finds the first boundary anywhere in a line: the gateway would not see the parts after it.
            raise Fault(FaultKind.BAD_MULTIPART, "The first boundary is not at the start of a line: put it there.")
        else:
            self._count_head(len(line))
            if self._is_strict:
                self._check_strict_line(line)
        if not line.endswith(b"\r\n") and not self._is_closed:
            raise self._truncated()
        return line

    @property
    def position(self) -> int:
        """Bytes of the body returned so far."""
        return self._pulled_bytes - (len(self._chunk) - self._offset)

    def _check_strict_line(self, line: bytes) -> None:
        if self._is_before_first:
            raise Fault(FaultKind.BAD_MULTIPART, "The form has text before its first boundary: remove the text.")
        if line[:1] in b" \t" and line.strip():
            raise Fault(FaultKind.BAD_MULTIPART, "A header of a part is folded over several lines: write one line.")

    async def read_data(self) -> tuple[bytes, bool]:
        """Return data of the current part and whether it is the part's last; only the last may be b"".

        After the last, the next line is the boundary line.
        """
        start, end, is_last = await self._find_data()
        chunk = self._chunk
        return (chunk if not start and end == len(chunk) else chunk[start:end]), is_last

    async def skip_data(self) -> tuple[int, bool]:
        """Return the size of what `read_data` would return, and whether it is the part's last."""
        start, end, is_last = await self._find_data()
        return end - start, is_last

    async def _find_data(self) -> tuple[int, int, bool]:
        """Return where the next data begins and ends in the chunk, which are as in `read_data`."""
        delimiter, boundary = self._delimiter, self._dash_boundary
        await self._count_token()
        if self._offset == len(self._chunk) and not await self._pull(may_be_large=True):
            raise self._truncated()
        while True:
            chunk, at = self._chunk, self._offset
            # Nearly always there is none, and this search is the cheapest.
            if not self._has_none and has_boundary(chunk, boundary, at):
                found = chunk.find(delimiter, at)
                self._check_bare_line_breaks(chunk, at, found if found >= 0 else len(chunk))
                if found >= 0:
                    self._offset = found + len(b"\r\n")
                    return at, found, True
            keep = self._partial_delimiter(chunk, at, len(delimiter))
            if keep > at:
                # Return these bytes before reading more: the caller checks limits before it passes them on.
                self._offset = keep
                return at, keep, False
            del chunk
            if not (fresh := await self._receive()):
                raise self._truncated()
            tail = self._chunk
            if len(fresh) >= len(delimiter) and boundary not in tail + fresh[: len(delimiter)]:
                # What looked like a delimiter is data, as nearly always. To join the two would copy the chunk.
                self._following, self._offset = fresh, len(tail)
                return 0, len(tail), False
            await self._append(fresh)

    async def check_line_break(self) -> None:
        """Raise Fault BAD_MULTIPART if the empty line after a part's headers is also the CRLF of the next delimiter.

        RFC 2046's grammar allows this for an empty part, but python-multipart and others then parse the boundary and
        the next part as data. Clients do not generate it.
        """
        boundary = self._dash_boundary
        while boundary.startswith(start := self._chunk[self._offset : self._offset + len(boundary)]):
            if len(start) < len(boundary) and await self._pull():
                continue
            if len(start) < len(boundary):
                return
            raise Fault(
                FaultKind.BAD_MULTIPART, "A boundary follows a part's headers directly: end an empty part with CRLF."
            )

    async def read_epilogue(self) -> None:
        """Read and discard what follows the closing delimiter. Raises Fault if it contains another delimiter."""
        tail = b""
        while True:
            chunk = self._chunk[self._offset :]
            self._chunk, self._offset = b"", 0
            if self._is_strict and chunk.strip(b"\r\n"):
                raise Fault(FaultKind.BAD_MULTIPART, "The form has text after its closing boundary: remove the text.")
            window = tail + chunk
            if self._dash_boundary in window:
                raise Fault(
                    FaultKind.BAD_MULTIPART, "Another boundary follows the closing one: send one form per request."
                )
            tail = window[-len(self._dash_boundary) :]
            if not await self._pull():
                return

    async def read(self, n: int = -1) -> bytes:
        """Raise NotImplementedError: MultipartReader's interface has this method, but parts use `read_data`."""
        raise NotImplementedError(f"read({n}) of a form: use PartReader")

    def unread_data(self, data: bytes) -> None:
        """Raise NotImplementedError: PartReader never reads beyond a delimiter, so nothing is pushed back."""
        raise NotImplementedError(f"{len(data)} bytes pushed back: PartReader reads up to the delimiter only")

    def at_eof(self) -> bool:
        """Return whether every byte was read."""
        return self._is_ended and self._offset >= len(self._chunk)

    async def _pull(self, *, may_be_large: bool = False) -> bool:
        """Append the next chunk to the unread bytes. Return whether there was one."""
        fresh = await self._receive()
        if fresh:
            await self._append(fresh, may_be_large=may_be_large)
        return bool(fresh)

    async def _receive(self) -> bytes:
        """Return the next chunk, b"" at the end."""
        # What was returned is freed before more is received, which then has the same memory.
        self._chunk, self._offset = self._chunk[self._offset :], 0
        self._has_none = False
        if self._following:
            await self._source.take_turn()
            fresh, self._following = self._following, b""
        else:
            fresh = await self._source.pull()
        self._is_ended = not fresh
        return fresh

    async def _append(self, fresh: bytes, *, may_be_large: bool = False) -> None:
        """Append a chunk. A large one is divided, except where it `may_be_large` and has no boundary: most are so."""
        if len(fresh) > SEARCHED_BYTES:
            self._has_none = may_be_large and not await self._has_boundary(fresh)
            if not self._has_none:
                fresh, self._following = fresh[:SEARCHED_BYTES], fresh[SEARCHED_BYTES:]
                # It was searched already in this turn.
                await self._source.take_turn()
        self._pulled_bytes += len(fresh)
        self._chunk = self._chunk + fresh if self._chunk else fresh

    async def _has_boundary(self, chunk: bytes) -> bool:
        """Return whether there is a boundary in a large chunk; takes a turn after each part of it."""
        boundary, at = self._dash_boundary, 0
        while len(chunk) - at > SEARCHED_BYTES:
            if has_boundary(chunk, boundary, at, at + SEARCHED_BYTES + len(boundary) - 1):
                return True
            at += SEARCHED_BYTES
            await self._source.take_turn()
        return has_boundary(chunk, boundary, at)

    async def _read_line(self) -> bytes:
        while (end := self._chunk.find(b"\n", self._offset)) < 0:
            if len(self._chunk) - self._offset > _MAX_LINE_BYTES:
                raise self._line_too_long()
            if not await self._pull():
                end = len(self._chunk) - 1
                break
        line = self._chunk[self._offset : end + 1]
        self._offset = end + 1
        if len(line) > _MAX_LINE_BYTES:
            raise self._line_too_long()
        if _BARE.search(line):
            raise Fault(FaultKind.BAD_MULTIPART, "A line outside of part data ends in a bare CR or LF: use CRLF.")
        return line

    def _line_too_long(self) -> Fault:
        if self._is_before_first:
            return Fault(
                FaultKind.BAD_MULTIPART, "The first boundary is missing: send the boundary that Content-Type names."
            )
        return Fault(
            FaultKind.PART_HEADERS_TOO_LARGE,
            f"A header line of a part is longer than {_MAX_LINE_BYTES} bytes: send a shorter one.",
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

    def _truncated(self) -> Fault:
        if self._is_before_first:
            return Fault(
                FaultKind.BAD_MULTIPART, "The body ends before the first boundary: send the one in Content-Type."
            )
        return Fault(FaultKind.BAD_MULTIPART, "The body ends without its closing boundary: send the whole form.")

    def _check_bare_line_breaks(self, chunk: bytes, at: int, end: int) -> None:
        """Raise Fault if a boundary follows a bare CR or LF: Werkzeug and others parse it as a delimiter.

        There is no delimiter in these bytes. A boundary in the middle of a line is data.
        """
        if (
            chunk.find(b"\n" + self._dash_boundary, at, end) >= 0
            or chunk.find(b"\r" + self._dash_boundary, at, end) >= 0
        ):
            raise Fault(FaultKind.BAD_MULTIPART, "A boundary follows a bare CR or LF, parsers differ on it: use CRLF.")

    async def _count_token(self) -> None:
        self._token_count += 1
        if self._token_count > TURN_TOKENS:
            self._token_count = 0
            await self._source.take_turn()

    def _partial_delimiter(self, chunk: bytes, at: int, longest: int) -> int:
        """Return the offset of a delimiter that may continue in the next chunk, or the chunk's length.

        A line break of any kind may begin one, so that a boundary after a bare CR or LF is found too.
        """
        size = len(chunk)
        for line_break in _LINE_BREAK.finditer(chunk, max(at, size - longest + 1)):
            if self._may_be_delimiter(chunk[line_break.start() :]):
                return line_break.start()
        return size

    def _may_be_delimiter(self, tail: bytes) -> bool:
        return any(
            (line_break + self._dash_boundary).startswith(tail) or tail == line_break for line_break in _LINE_BREAKS
        )


_LINE_BREAKS: Final = (b"\r\n", b"\r", b"\n")

"""Read a form part by part, each part as a stream of chunks; the limits on parts are enforced here."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.config import Limits
from gateway.errors import Fault, FaultKind
from gateway.http.limits import limit_fault
from gateway.multipart.content import FormContent
from gateway.multipart.disposition import Disposition, parse_disposition

#: Longest Content-Length of a part that is accepted: enough for any size, cheap for int().
_MAX_DIGITS: Final = 18


class PartKind(enum.StrEnum):
    """A part with a file name is a file, any other part is a form field (RFC 7578 section 4.2)."""

    FILE = "file"
    FIELD = "field"


class PartReader:
    """Reads the data of one part; MultipartReader's `part_reader_cls`.

    Not derived from BodyPartReader, whose search copies every byte twice and pushes bytes back. MultipartReader uses
    only the methods defined here; its special treatment of `_charset_` fields, which drops the next part, applies
    only to BodyPartReader.
    """

    def __init__(self, boundary: bytes, headers: CIMultiDictProxy[str], content: FormContent, **_: Any) -> None:
        del boundary  # FormContent has it.
        self.headers = headers
        #: MultipartReader reads this attribute: bytes read beyond the part, of which there are none.
        self._unread: list[bytes] = []
        self._content = content
        self._is_ended = False
        self._is_started = False

    async def read_chunk(self) -> bytes:
        """Return the next data of the part, or b"" at its end. Raises Fault BAD_MULTIPART."""
        if self._is_ended:
            return b""
        if not self._is_started:
            self._is_started = True
            await self._content.check_line_break()
        data, self._is_ended = await self._content.read_data()
        return data

    async def skip_chunk(self) -> int:
        """Return the size of the next data of the part, 0 at its end; the data itself is dropped, without a copy."""
        if self._is_ended:
            return 0
        if not self._is_started:
            self._is_started = True
            await self._content.check_line_break()
        size, self._is_ended = await self._content.skip_data()
        return size

    async def release(self) -> None:
        """Read and discard the rest of the part."""
        while not self._is_ended:
            await self.skip_chunk()

    def at_eof(self) -> bool:
        """Return whether the whole part was read."""
        return self._is_ended


@dataclass(slots=True)
class Part:
    """One part of a form: its head, its data, and the bytes read so far (`size`). `number` counts from 1."""

    number: int
    disposition: Disposition
    content_type: str | None
    limits: Limits
    route: str
    reader: PartReader
    size: int = 0

    @property
    def kind(self) -> PartKind:
        """Whether the part is a file or a form field."""
        return PartKind.FIELD if self.disposition.filename is None else PartKind.FILE

    @property
    def declared_bytes(self) -> int | None:
        """The part's own Content-Length in bytes, None if missing or invalid. Deprecated by RFC 7578 section 4.8."""
        declared: str = self.reader.headers.get("Content-Length", "")
        return int(declared) if declared.isascii() and declared.isdigit() and len(declared) <= _MAX_DIGITS else None

    async def read(self) -> bytes:
        """Return the next data, b"" at the end. Raises Fault if the data exceeds the limit, without returning it."""
        data = await self.reader.read_chunk()
        self._count(len(data))
        return data

    async def skip(self) -> None:
        """Read the rest of the data and drop it. Raises Fault if it exceeds the limit, as soon as it does."""
        reader = self.reader
        while not reader.at_eof():
            self._count(await reader.skip_chunk())

    def _count(self, size: int) -> None:
        self.size += size
        limit = self.limits.max_field if self.disposition.filename is None else self.limits.max_part
        if self.size > limit:
            raise self._too_large(limit)

    def _too_large(self, limit: float) -> Fault:
        is_file = self.kind is PartKind.FILE
        return limit_fault(
            FaultKind.PART_TOO_LARGE if is_file else FaultKind.FIELD_TOO_LARGE,
            self.route,
            "limits.max_part" if is_file else "limits.max_field",
            limit,
            self.size,
            what=f"Part {self.number}",
        )


class FormParts:
    """The parts of a form, in order; the unread rest of a part is discarded when the next one is requested.

    Iterating raises Fault BAD_MULTIPART, or the fault of a limit. After the last part the epilogue is read and checked.
    `check` is called with each part before it is returned, and may raise.

    A class and not an async generator: PartInspector closes a coroutine that waits in `__anext__`, and asyncio would
    then try in vain to close the generator, and log that (CPython 3.11).
    """

    def __init__(
        self,
        content: FormContent,
        boundary: bytes,
        limits: Limits,
        route: str,
        *,
        check: Callable[[Part], None] | None = None,
    ) -> None:
        self._content = content
        self._reader = _make_reader(content, boundary)
        self._limits = limits
        self._route = route
        self._check = check
        self._count = 0

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Part:
        """Return the next part."""
        try:
            raw = await self._reader.next()
        except (ValueError, HttpProcessingError) as exc:
            raise Fault(FaultKind.BAD_MULTIPART, f"{_where(self._count)} is malformed: {_reason(exc)}.") from exc
        if raw is None:
            await self._content.read_epilogue()
            raise StopAsyncIteration
        self._count += 1
        most = self._limits.max_parts
        if self._count > most:
            raise limit_fault(
                FaultKind.TOO_MANY_PARTS,
                self._route,
                "limits.max_parts",
                most,
                self._count,
                what="The form",
                unit="parts",
            )
        part = _make_part(raw, self._count, self._limits, self._route)
        if self._check is not None:
            self._check(part)
        return part


def _make_reader(content: FormContent, boundary: bytes) -> aiohttp.MultipartReader:
    headers = CIMultiDict({"Content-Type": f'multipart/form-data; boundary="{boundary.decode()}"'})
    # aiohttp's types allow only its own classes here, its code only calls the methods that FormContent has.
    reader: Any = aiohttp.MultipartReader(headers, content)  # type: ignore[arg-type]
    reader.part_reader_cls = PartReader
    # A part of type multipart/mixed is data like any other: Werkzeug, Django and Starlette do not parse it either.
    reader.multipart_reader_cls = functools.partial(PartReader, boundary)
    return reader  # type: ignore[no-any-return]


def _make_part(raw: Any, number: int, limits: Limits, route: str) -> Part:
    dispositions = raw.headers.getall("Content-Disposition", [None])
    if len(dispositions) > 1:
        raise Fault(FaultKind.BAD_MULTIPART, f"Part {number} has Content-Disposition twice: send it once.")
    disposition = parse_disposition(dispositions[0], number)
    return Part(number, disposition, raw.headers.get("Content-Type"), limits, route, raw)


_MAX_REASON_CHARACTERS: Final = 120


def _where(number: int) -> str:
    return f"The head of part {number + 1}"


def _reason(exc: Exception) -> str:
    """Return the parser's reason without bytes from the client."""
    name = type(exc).__name__
    return "a header is not `name: value`" if name == "InvalidHeader" else name[:_MAX_REASON_CHARACTERS]

"""Parts of a form, one after the other, each a stream of chunks with a limit."""

from __future__ import annotations

import enum
import functools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.config import Limits
from gateway.errors import Fault, FaultKind
from gateway.http.limits import limit_fault
from gateway.multipart.content import FormContent
from gateway.multipart.disposition import Disposition, parse_disposition

#: More than any size has, few enough for int().
_MAX_DIGITS: Final = 18


class PartKind(enum.StrEnum):
    """A part with a file name is a file, any other a field (RFC 7578 section 4.2)."""

    FILE = "file"
    FIELD = "field"


class PartReader:
    """The data of one part, as MultipartReader's `part_reader_cls`.

    Not derived from BodyPartReader, whose search copies every byte twice and pushes bytes back; MultipartReader
    needs only what is here, and takes its `_charset_` detour (which eats the next part) only for that class.
    """

    def __init__(self, boundary: bytes, headers: CIMultiDictProxy[str], content: FormContent, **_: Any) -> None:
        del boundary  # FormContent knows it.
        self.headers = headers
        #: MultipartReader takes over what a nested reader read too far: nothing, ever.
        self._unread: list[bytes] = []
        self._content = content
        self._is_ended = False
        self._is_begun = False

    async def read_chunk(self) -> bytes:
        """Return the next data of the part, or b"" at its end. Raises Fault BAD_MULTIPART."""
        if self._is_ended:
            return b""
        if not self._is_begun:
            self._is_begun = True
            await self._content.refuse_shared_line()
        data, self._is_ended = await self._content.read_data()
        return data

    async def release(self) -> None:
        """Read the rest of the part to nowhere."""
        while not self._is_ended:
            await self.read_chunk()

    def at_eof(self) -> bool:
        """Say whether the whole part was read."""
        return self._is_ended


@dataclass(slots=True)
class Part:
    """One part of a form: what it says it is, and its data."""

    number: int
    disposition: Disposition
    content_type: str | None
    limits: Limits
    route: str
    reader: PartReader
    size: int = 0

    @property
    def kind(self) -> PartKind:
        """Whether it is a file or a field."""
        return PartKind.FIELD if self.disposition.filename is None else PartKind.FILE

    @property
    def declared_bytes(self) -> int | None:
        """The size its own Content-Length declares, None without a sound one. RFC 7578 section 4.8 deprecates it."""
        declared: str = self.reader.headers.get("Content-Length", "")
        return int(declared) if declared.isascii() and declared.isdigit() and len(declared) <= _MAX_DIGITS else None

    async def read(self) -> bytes:
        """Return the next data, b"" at the end. Raises Fault when the part outgrows its limit, before the excess."""
        data = await self.reader.read_chunk()
        self.size += len(data)
        limit = self.limits.max_field if self.disposition.filename is None else self.limits.max_part
        if self.size > limit:
            raise self._too_large(limit)
        return data

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


async def read_form(content: FormContent, boundary: bytes, limits: Limits, route: str) -> AsyncIterator[Part]:
    """Yield the parts of a form in order; each must be read before the next is asked for, or is skipped.

    Raises Fault BAD_MULTIPART or a limit's. Behind the last part, the epilogue is read and checked.
    """
    reader = _make_reader(content, boundary)
    number = 0
    while True:
        try:
            raw = await reader.next()
        except (ValueError, HttpProcessingError) as exc:
            raise Fault(FaultKind.BAD_MULTIPART, f"{_where(number)} is malformed: {_reason(exc)}.") from exc
        if raw is None:
            await content.read_epilogue()
            return
        number += 1
        if number > limits.max_parts:
            raise limit_fault(
                FaultKind.TOO_MANY_PARTS,
                route,
                "limits.max_parts",
                limits.max_parts,
                number,
                what="The form",
                unit="parts",
            )
        yield _make_part(raw, number, limits, route)


def _make_reader(content: FormContent, boundary: bytes) -> aiohttp.MultipartReader:
    headers = CIMultiDict({"Content-Type": f'multipart/form-data; boundary="{boundary.decode()}"'})
    # The doors are class attributes meant for subclasses; typed for aiohttp's own classes, used by their methods.
    reader: Any = aiohttp.MultipartReader(headers, content)  # type: ignore[arg-type]
    reader.part_reader_cls = PartReader
    # A part of type multipart/mixed is data like any other: Werkzeug, Django and Starlette do not descend either.
    reader.multipart_reader_cls = functools.partial(PartReader, boundary)
    return reader  # type: ignore[no-any-return]


def _make_part(raw: Any, number: int, limits: Limits, route: str) -> Part:
    dispositions = raw.headers.getall("Content-Disposition", [None])
    if len(dispositions) > 1:
        raise Fault(FaultKind.BAD_MULTIPART, f"Part {number} has Content-Disposition twice.")
    disposition = parse_disposition(dispositions[0], number)
    return Part(number, disposition, raw.headers.get("Content-Type"), limits, route, raw)


_MAX_REASON_CHARACTERS: Final = 120


def _where(number: int) -> str:
    return f"The head of part {number + 1}"


def _reason(exc: Exception) -> str:
    """Return the parser's word without the client's bytes."""
    name = type(exc).__name__
    return "a header field is not `name: value`" if name == "InvalidHeader" else name[:_MAX_REASON_CHARACTERS]

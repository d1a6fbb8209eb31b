"""What a file looks like when it goes upstream by itself: raw or as a form, with the form fields before it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, quote_from_bytes

from gateway.config import FileBody, FormFields, Route
from gateway.errors import Fault, FaultKind
from gateway.filters import FileHead
from gateway.http.headers import Header, ReceivedHeaders
from gateway.http.limits import limit_fault
from gateway.multipart import FormField, FormWriter, Part

#: Headers of the client's request that describe its body as a whole, not the file in it.
_CONTENT_HEADERS: Final = (b"content-", b"repr-digest", b"digest", b"want-")
_MAX_FIELD_VALUE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class BodyShape:
    """How a file goes upstream: headers about its content, the bytes before and after it, and the length."""

    headers: tuple[Header, ...]
    #: To be joined to the query of the request; without a question mark.
    query: str
    prefix: bytes
    suffix: bytes
    #: Of the whole body; None is not known.
    length: int | None


class HeldFields:
    """Form fields held while the file after them streams, within `max_held`."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._bytes = 0
        self.fields: list[FormField] = []

    async def read(self, part: Part) -> None:
        """Read a field to its end and hold it. Raises Fault FIELD_TOO_LARGE."""
        value = bytearray()
        self.count(len(part.disposition.name) + len(part.content_type or ""))
        while data := await part.read():
            self.count(len(data))
            value += data
        self.fields.append(FormField(part.disposition.name, bytes(value), part.content_type))

    def count(self, size: int) -> None:
        """Count bytes that are held. Raises Fault FIELD_TOO_LARGE."""
        self._bytes += size
        check_held(self._route, self._bytes)


def check_held(route: Route, size: int) -> None:
    """Raise Fault FIELD_TOO_LARGE if `size` bytes of a form are more than may be held."""
    limit = route.limits.max_held
    if size > limit:
        what = "What comes before the first file, or before the end of a form without one,"
        raise limit_fault(FaultKind.FIELD_TOO_LARGE, route.name, "limits.max_held", limit, size, what=what)


def passed_name(config: FormFields, name: str) -> str | None:
    """Return the name under which a client's form field is passed on, None if it is not."""
    if name in config.drop or (config.keep is not None and name not in config.keep):
        return None
    passed = config.rename.get(name, name)
    return None if passed in config.add else passed


def select_fields(config: FormFields, held: Sequence[FormField]) -> list[FormField]:
    """Return the form fields that are passed on, under the names they get, and those that are added."""
    named = [(passed_name(config, field.name), field) for field in held]
    kept = [FormField(name, field.value, field.content_type) for name, field in named if name is not None]
    return kept + [FormField(name, value.encode()) for name, value in config.add.items()]


def shape_file(
    body: FileBody,
    config: FormFields,
    filename_header: str | None,
    file: FileHead,
    held: Sequence[FormField],
) -> BodyShape:
    """Return how a file goes upstream. Raises Fault BAD_MULTIPART for a form field that cannot be a header."""
    chosen = select_fields(config, held)
    send = config.send or ("form" if body == "multipart" else "query")
    query = "&".join(map(_as_parameter, chosen)) if send == "query" else ""
    heads = tuple(_as_header(field) for field in chosen) if send == "headers" else ()
    if body == "multipart":
        writer = FormWriter()
        prefix = b"".join(writer.field(field) for field in chosen) if send == "form" else b""
        prefix += writer.file_head(file.field, file.filename, file.content_type)
        suffix = writer.end()
        content_type = writer.content_type
    else:
        prefix = suffix = b""
        content_type = (file.content_type or "application/octet-stream").encode("utf-8", "surrogateescape")
        if filename_header is not None and file.filename:
            heads = (
                *heads,
                (filename_header.encode(), quote(file.filename, safe="", errors="surrogateescape").encode()),
            )
    length = None if file.size is None else len(prefix) + file.size + len(suffix)
    return BodyShape(((b"Content-Type", content_type), *heads), query, prefix, suffix, length)


async def file_pieces(
    shape: BodyShape,
    size: int | None,
    read: Callable[[], Awaitable[bytes]],
    *,
    wrong_length: Callable[[], Fault],
    at_end: Callable[[], Awaitable[None]] | None = None,
) -> AsyncGenerator[bytes, None]:
    """Yield a file as it goes upstream. `size` is its own, None not known; a file that has another raises.

    `at_end` is awaited after the file's last byte, and before the last piece is yielded where the request would
    look whole with it.
    """
    if shape.prefix:
        yield shape.prefix
    left = size
    while data := await read():
        if left is not None:
            left -= len(data)
            if left < 0 or (not left and await read()):
                raise wrong_length()
            if not left and at_end is not None:
                await at_end()
                at_end = None
        yield data
    if left:
        raise wrong_length()
    if at_end is not None:
        await at_end()
    if shape.suffix:
        yield shape.suffix


def join_query(path: str, query: str, more: str) -> str:
    """Return a request target: `query` is as sent, with its question mark, `more` is added to it."""
    if not more:
        return path + query
    return f"{path}{query or '?'}{'&' if len(query) > 1 else ''}{more}"


def without_content_headers(headers: ReceivedHeaders) -> ReceivedHeaders:
    """Return the client's headers except those about its body as a whole."""
    named = zip(headers.names, headers.pairs, strict=True)
    return ReceivedHeaders([header for name, header in named if not name.key.startswith(_CONTENT_HEADERS)])


def _as_parameter(field: FormField) -> str:
    try:
        name = quote(field.name, safe="")
    except UnicodeEncodeError:
        raise Fault(
            FaultKind.BAD_MULTIPART,
            "The name of a form field that goes upstream in the query is not UTF-8: encode it in UTF-8.",
        ) from None
    return f"{name}={quote_from_bytes(field.value, safe='')}"


def _as_header(field: FormField) -> Header:
    name = b"X-Form-" + "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in field.name).encode()
    if len(field.value) > _MAX_FIELD_VALUE_BYTES:
        raise Fault(
            FaultKind.FIELD_TOO_LARGE,
            f"Form field {field.name!r} has {len(field.value)} bytes and goes upstream as a header, which takes "
            f"{_MAX_FIELD_VALUE_BYTES}: send less, or set the route's form_fields.send to query.",
        )
    return name, quote_from_bytes(field.value, safe=" !#$&'()*+,/:;=?@[]~^`{|}<>\"").encode()

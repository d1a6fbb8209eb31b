"""What a file looks like when it goes upstream by itself: raw or as a form, with the form fields before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote, quote_from_bytes

from gateway.config import FormFields
from gateway.errors import Fault, FaultKind
from gateway.filters import FileHead
from gateway.headers import Field, Fields
from gateway.multipart import FormField, FormWriter

#: Fields of the client's request that speak about the envelope and not about the file in it.
_ABOUT_CONTENT: Final = (b"content-", b"repr-digest", b"digest", b"want-")
_MAX_FIELD_VALUE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Shaped:
    """How a file goes upstream: fields about its content, what stands before and behind its bytes, and the length."""

    fields: tuple[Field, ...]
    #: To be joined to the query of the request; without a question mark.
    query: str
    prefix: bytes
    suffix: bytes
    #: Of the whole body; None is not known.
    length: int | None


def select_fields(config: FormFields, held: Sequence[FormField]) -> list[FormField]:
    """Return the form fields that are passed on, under the names they get."""
    kept = [field for field in held if config.keep is None or field.name in config.keep]
    named = [
        FormField(config.rename.get(field.name, field.name), field.value)
        for field in kept
        if field.name not in config.drop
    ]
    added = [FormField(name, value.encode()) for name, value in config.add.items()]
    return [field for field in named if field.name not in config.add] + added


def shape_file(
    body: Literal["multipart", "raw"],
    config: FormFields,
    file_name: str | None,
    file: FileHead,
    held: Sequence[FormField],
) -> Shaped:
    """Return how a file goes upstream. Raises Fault BAD_MULTIPART for a form field that cannot be a header field."""
    chosen = select_fields(config, held)
    send = config.send or ("form" if body == "multipart" else "query")
    query = "&".join(f"{quote(field.name, safe='')}={quote_from_bytes(field.value, safe='')}" for field in chosen)
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
        if file_name is not None:
            heads = (*heads, (file_name.encode(), quote(file.filename, safe="", errors="surrogateescape").encode()))
    length = None if file.size is None else len(prefix) + file.size + len(suffix)
    return Shaped(((b"Content-Type", content_type), *heads), query if send == "query" else "", prefix, suffix, length)


def without_content_fields(fields: Fields) -> list[Field]:
    """Return the client's fields less those about the content of its envelope."""
    return [(name, value) for name, value in fields if not name.lower().startswith(_ABOUT_CONTENT)]


def _as_header(field: FormField) -> Field:
    name = b"X-Form-" + "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in field.name).encode()
    if len(field.value) > _MAX_FIELD_VALUE_BYTES:
        raise Fault(
            FaultKind.FIELD_TOO_LARGE,
            f"Form field {field.name!r} has {len(field.value)} bytes and goes upstream as a header field, which takes "
            f"{_MAX_FIELD_VALUE_BYTES}: send less, or set the route's fields.send to query.",
        )
    return name, quote_from_bytes(field.value, safe=" !#$&'()*+,/:;=?@[]~^`{|}<>\"").encode()

"""Parse Content-Disposition and the boundary parameter, as defined by RFC 7578 and as browsers send them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from gateway.errors import Fault, FaultKind

# RFC 9110 section 5.6: token, quoted-string, and parameters of them.
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER: Final = re.compile(rf'[ \t]*;[ \t]*(?:({_TOKEN})[ \t]*=[ \t]*(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")[ \t]*)?')
# Browsers do not escape backslashes in file names: only \" and \\ are decoded as escapes.
_ESCAPE: Final = re.compile(r'\\(["\\])')
# RFC 2046 section 5.1.1: bchars, at most 70, not ending in a space.
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")

#: As most clients write it; `boundary_of` finds the same.
_PLAIN_FORM: Final = re.compile(rb"multipart/form-data; ?boundary=([0-9A-Za-z'+_.-]{1,70})")


@dataclass(frozen=True, slots=True)
class Disposition:
    """A part's name and file name. `filename` is text from the client, not a path: see gateway.storage.names."""

    name: str
    filename: str | None
    #: Whether the file name was sent as `filename*`, which RFC 7578 section 4.2 forbids in forms.
    is_extended: bool = False


def form_boundary_of(content_type: bytes) -> bytes | None:
    """Return the boundary of multipart/form-data, None for another type. Raises Fault BAD_MULTIPART."""
    if (plain := _PLAIN_FORM.fullmatch(content_type)) is not None:
        return plain[1]
    if b"/form-data" not in content_type.lower():
        return None
    text = content_type.decode("latin-1")
    if text.partition(";")[0].strip().lower() != "multipart/form-data":
        return None
    return boundary_of(text)


def boundary_of(content_type: str) -> bytes:
    """Return the boundary of a multipart Content-Type. Raises Fault BAD_MULTIPART unless it has exactly one."""
    parameters = _parameters(content_type.partition(";")[2], "Content-Type")
    boundary = parameters.get("boundary")
    if boundary is None:
        raise _bad("Content-Type has no boundary: add boundary=..., or let the client library set the header.")
    if not _BOUNDARY.fullmatch(boundary):
        raise _bad("The boundary is not valid (RFC 2046 section 5.1.1): use 1 to 70 letters, digits or '()+_,-./:=?.")
    return boundary.encode("ascii")


def parse_disposition(value: str | None, part_number: int) -> Disposition:
    """Return name and file name of a part. Raises Fault BAD_MULTIPART for an invalid disposition.

    Duplicate parameters, a missing name and types other than form-data are refused, because parsers differ on them.
    """
    if value is None:
        raise _bad(f"Part {part_number} has no Content-Disposition: add one (RFC 7578 section 4.2).")
    kind, _, rest = value.partition(";")
    if kind.strip().lower() != "form-data":
        raise _bad(f"The Content-Disposition of part {part_number} is not form-data: begin it with form-data.")
    parameters = _parameters(rest, f"Content-Disposition of part {part_number}")
    name = parameters.get("name")
    if name is None:
        raise _bad(f"Part {part_number} has no name: add name=... to its Content-Disposition (RFC 7578 section 4.2).")
    extended = parameters.get("filename*")
    filename = _decode_extended(extended, part_number) if extended is not None else parameters.get("filename")
    return Disposition(name, filename, extended is not None)


def _parameters(rest: str, where: str) -> dict[str, str]:
    text = ";" + rest if rest.strip(" \t") else ""
    parameters: dict[str, str] = {}
    position = 0
    while position < len(text):
        found = _PARAMETER.match(text, position)
        if found is None:
            raise _bad(f'{where} is malformed: write name=value or name="value" between semicolons.')
        position = found.end()
        if found[1] is None:
            continue
        key = found[1].lower()
        if key in parameters:
            raise _bad(f"{where} has the parameter {key} twice: send it once.")
        parameters[key] = found[2] if found[2] is not None else _ESCAPE.sub(r"\1", found[3])
    return parameters


def _decode_extended(value: str, part_number: int) -> str:
    """Decode filename* (RFC 8187 section 3.2) in UTF-8 or Latin-1. Raises Fault BAD_MULTIPART for other charsets."""
    charset, _, rest = value.partition("'")
    _, quote, encoded = rest.partition("'")
    if not quote or charset.lower() not in ("utf-8", "iso-8859-1"):
        raise _bad(f"filename* of part {part_number} is malformed: write UTF-8''percent-encoded (RFC 8187).")
    try:
        return unquote_to_bytes(encoded).decode(charset)
    except UnicodeDecodeError:
        raise _bad(f"filename* of part {part_number} is not valid {charset}: encode it in {charset}.") from None


def _bad(detail: str) -> Fault:
    return Fault(FaultKind.BAD_MULTIPART, detail)

"""Forms made new: canonical heads, a fresh boundary. Nothing a client wrote goes through unescaped.

Names are quoted as browsers do it (HTML, "multipart/form-data encoding algorithm"): `"`, CR and LF percent-encoded,
everything else as UTF-8; and the backslash too, which some parsers take for an escape and others do not. `filename*`
is never written (RFC 7578 section 4.2 forbids it).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

_ESCAPES: Final = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A", "\0": "%00", "\\": "%5C"})


@dataclass(frozen=True, slots=True)
class FormField:
    """A form field at hand: its name and its bytes."""

    name: str
    value: bytes
    #: As its part said; most say nothing.
    content_type: str | None = None


class FormWriter:
    """Writes the lines between the data of the parts of one form."""

    def __init__(self) -> None:
        self._boundary = b"gateway-" + secrets.token_hex(16).encode()
        self._is_first = True

    @property
    def content_type(self) -> bytes:
        """The form's Content-Type."""
        return b"multipart/form-data; boundary=" + self._boundary

    def field(self, field: FormField) -> bytes:
        """Return a field; more of its value may follow."""
        kind = b"" if field.content_type is None else b"Content-Type: " + _line(field.content_type) + b"\r\n"
        return self._delimiter() + _disposition(field.name, None) + kind + b"\r\n" + field.value

    def file_head(self, name: str, filename: str, content_type: str | None) -> bytes:
        """Return what stands before a file's bytes."""
        kind = _line(content_type or "application/octet-stream")
        return self._delimiter() + _disposition(name, filename) + b"Content-Type: " + kind + b"\r\n\r\n"

    def end(self) -> bytes:
        """Return what stands behind the last part's bytes."""
        return b"\r\n--" + self._boundary + b"--\r\n"

    def _delimiter(self) -> bytes:
        line_break, self._is_first = b"" if self._is_first else b"\r\n", False
        return line_break + b"--" + self._boundary + b"\r\n"


def quote_name(text: str) -> bytes:
    """Return a name as it stands between double quotes."""
    return text.translate(_ESCAPES).encode("utf-8", "surrogateescape")


def _disposition(name: str, filename: str | None) -> bytes:
    line = b'Content-Disposition: form-data; name="' + quote_name(name) + b'"'
    if filename is not None:
        line += b'; filename="' + quote_name(filename) + b'"'
    return line + b"\r\n"


def _line(text: str) -> bytes:
    """Return a field's value on one line: what came from a parser holds no line break, what others made might."""
    return " ".join(text.split()).encode("utf-8", "surrogateescape")

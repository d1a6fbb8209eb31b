"""Write re-encoded forms: canonical part heads, a new random boundary, every text from the client escaped.

Names are quoted as browsers do (HTML, "multipart/form-data encoding algorithm"): `"`, CR and LF are percent-encoded,
everything else is UTF-8. The backslash is percent-encoded too, since only some parsers treat it as an escape.
`filename*` is never written (RFC 7578 section 4.2 forbids it).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

_ESCAPES: Final = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A", "\0": "%00", "\\": "%5C"})


@dataclass(frozen=True, slots=True)
class FormField:
    """A form field in memory."""

    name: str
    value: bytes
    #: The Content-Type of its part; most parts have none.
    content_type: str | None = None


class FormWriter:
    """Writes one form: any number of `field` and `file_head` (each file's data follows its head), then `end`."""

    def __init__(self) -> None:
        self._boundary = b"gateway-" + secrets.token_hex(16).encode()
        self._is_first = True

    @property
    def content_type(self) -> bytes:
        """The form's Content-Type."""
        return b"multipart/form-data; boundary=" + self._boundary

    def field(self, field: FormField) -> bytes:
        """Return a form field as a part; the caller may append more of its value."""
        kind = b"" if field.content_type is None else b"Content-Type: " + _line(field.content_type) + b"\r\n"
        return self._delimiter() + _disposition(field.name, None) + kind + b"\r\n" + field.value

    def file_head(self, name: str, filename: str, content_type: str | None) -> bytes:
        """Return the delimiter and the head of a file; the file's bytes follow."""
        kind = _line(content_type or "application/octet-stream")
        return self._delimiter() + _disposition(name, filename) + b"Content-Type: " + kind + b"\r\n\r\n"

    def end(self) -> bytes:
        """Return the closing delimiter."""
        return b"\r\n--" + self._boundary + b"--\r\n"

    def _delimiter(self) -> bytes:
        line_break, self._is_first = b"" if self._is_first else b"\r\n", False
        return line_break + b"--" + self._boundary + b"\r\n"


def quote_name(text: str) -> bytes:
    """Return a name escaped for a quoted string."""
    return text.translate(_ESCAPES).encode("utf-8", "surrogateescape")


def _disposition(name: str, filename: str | None) -> bytes:
    line = b'Content-Disposition: form-data; name="' + quote_name(name) + b'"'
    if filename is not None:
        line += b'; filename="' + quote_name(filename) + b'"'
    return line + b"\r\n"


def _line(text: str) -> bytes:
    """Return a header value on one line: values from a plug-in may contain line breaks, parsed values do not."""
    return " ".join(text.split()).encode("utf-8", "surrogateescape")

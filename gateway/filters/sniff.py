"""sniff: looks at a file's first bytes, whatever its name and Content-Type say, and takes only allowed types.

The verdict falls within 64 KiB, on the first file before an upstream hears of the request. What puremagic does not
know by its magic bytes is text if it reads as UTF-8 without control bytes, and application/octet-stream otherwise.
"""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.errors import Fault, FaultKind
from gateway.filters.file import FileHead, Observer
from gateway.http.headers import Header

SNIFFED_BYTES: Final = 64 * 1024
#: More than this is not needed to tell text from bytes.
_TEXT_BYTES: Final = 4096
_CONTROLS: Final = frozenset(range(32)) - frozenset(b"\t\n\r\f\x1b")


class SniffFactory:
    """Allows types by patterns such as image/*."""

    first_bytes = SNIFFED_BYTES

    def __init__(self, allow: Sequence[str]) -> None:
        self._allow = allow
        #: Typed by nobody; an optional extra.
        self._magic: Any = importlib.import_module("puremagic")

    def __call__(self, file: FileHead) -> Observer:
        """Return the filter of a file."""
        return _Sniff(self._allow, self._magic, file)


class _Sniff:
    def __init__(self, allow: Sequence[str], magic: Any, file: FileHead) -> None:
        self._allow = allow
        self._magic = magic
        self._file = file
        self._held: bytes | None = b""
        self._type = ""

    async def feed_data(self, chunk: bytes) -> None:
        """Gather the first bytes until the verdict. Raises Fault TYPE_NOT_ALLOWED."""
        if self._held is not None:
            self._held += chunk
            if len(self._held) >= SNIFFED_BYTES:
                self._judge(self._held)

    async def finish(self) -> None:
        """Judge a file shorter than what is looked at. Raises Fault TYPE_NOT_ALLOWED."""
        if self._held is not None:
            self._judge(self._held)

    def close(self) -> None:
        """Drop what is held."""
        self._held = None

    def facts(self) -> Mapping[str, str | int]:
        """Return the type found."""
        return {"sniffed": self._type}

    def response_headers(self) -> Sequence[Header]:
        """Nothing for the client."""
        return ()

    def _judge(self, held: bytes) -> None:
        self._held = None
        self._type = sniff_type(self._magic, held[:SNIFFED_BYTES])
        if any(fnmatch.fnmatchcase(self._type, pattern) for pattern in self._allow):
            return
        raise Fault(
            FaultKind.TYPE_NOT_ALLOWED,
            f"The bytes of {self._file} are {self._type}, and this route takes {', '.join(self._allow)}: "
            "send another file.",
            facts={"sniffed": self._type},
        )


def sniff_type(magic: Any, head: bytes) -> str:
    """Return the media type that a file's first bytes give away."""
    try:
        # Sorted by confidence: the first is the longest magic that fits.
        found = magic.magic_string(head) if head else []
    except magic.PureError:
        found = []
    for match in found:
        if match.mime_type:
            return str(match.mime_type)
    text = head[:_TEXT_BYTES]
    try:
        text[: text.rfind(b"\n") + 1 or max(0, len(text) - 3)].decode()
    except UnicodeDecodeError:
        return "application/octet-stream"
    return "application/octet-stream" if _CONTROLS.intersection(text) else "text/plain"

"""The filter `sniff`: allow files by the type of their first bytes; name and Content-Type are ignored.

The first 64 KiB are checked; those of the first file before a request is sent upstream. A file whose magic bytes
puremagic does not recognise is text/plain if it is UTF-8 without control bytes, application/octet-stream otherwise.
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
#: Bytes that are checked to distinguish text from binary data.
_TEXT_BYTES: Final = 4096
_CONTROLS: Final = frozenset(range(32)) - frozenset(b"\t\n\r\f\x1b")


class SniffFactory:
    """Creates the sniff observers of a route; `allow` has patterns such as image/*."""

    first_bytes = SNIFFED_BYTES

    def __init__(self, allow: Sequence[str]) -> None:
        self._allow = allow
        #: puremagic is an optional extra and has no types.
        self._magic: Any = importlib.import_module("puremagic")

    def __call__(self, file: FileHead) -> Observer:
        """Return the observer of a file."""
        return _Sniff(self._allow, self._magic, file)


class _Sniff:
    def __init__(self, allow: Sequence[str], magic: Any, file: FileHead) -> None:
        self._allow = allow
        self._magic = magic
        self._file = file
        self._head: bytes | None = b""
        self._type = ""

    async def feed_data(self, chunk: bytes) -> None:
        """Collect the first bytes and check them once there are 64 KiB. Raises Fault TYPE_NOT_ALLOWED."""
        if self._head is not None:
            self._head += chunk
            if len(self._head) >= SNIFFED_BYTES:
                self._check_type(self._head)

    async def finish(self) -> None:
        """Check a file shorter than 64 KiB. Raises Fault TYPE_NOT_ALLOWED."""
        if self._head is not None:
            self._check_type(self._head)

    def close(self) -> None:
        """Drop the collected bytes."""
        self._head = None

    def facts(self) -> Mapping[str, str | int]:
        """Return `sniffed`: the media type found."""
        return {"sniffed": self._type}

    def response_headers(self) -> Sequence[Header]:
        """Return no headers."""
        return ()

    def _check_type(self, head: bytes) -> None:
        self._head = None
        self._type = sniff_type(self._magic, head[:SNIFFED_BYTES])
        if any(fnmatch.fnmatchcase(self._type, pattern) for pattern in self._allow):
            return
        raise Fault(
            FaultKind.TYPE_NOT_ALLOWED,
            f"The content of {self._file} is {self._type}, and this route allows {', '.join(self._allow)}: "
            "send a file of an allowed type, or add the type to sniff.allow.",
            facts={"sniffed": self._type},
        )


def sniff_type(magic: Any, head: bytes) -> str:
    """Return the media type of a file by its first bytes."""
    try:
        # Sorted by confidence: the first match is the one with the longest magic bytes.
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

"""The additional checks of `multipart: strict`: it refuses everything on which parsers are known to differ.

Werkzeug, python-multipart, multipart and Django differ on: `filename*`; control bytes and invalid UTF-8 in names and
types; quotes, backslashes and their percent-encoding in names; duplicate headers; Content-Transfer-Encoding; folded
header lines (checked in `content.FormContent`).
"""

from __future__ import annotations

import re
from typing import Final

from gateway.errors import Fault, FaultKind
from gateway.multipart.reader import Part

_CONTROL: Final = re.compile("[\\x00-\\x1f\\x7f\\ud800-\\udfff]")
_ESCAPE: Final = re.compile(r'["\\]|%(?:22|0[AaDd])')
_PLAIN_ENCODINGS: Final = frozenset({"7bit", "8bit", "binary"})
_SINGLE: Final = ("Content-Type", "Content-Transfer-Encoding", "Content-Length", "Content-Disposition")


def check_strict(part: Part) -> None:
    """Raise Fault BAD_MULTIPART for a part on which parsers differ."""
    disposition, headers = part.disposition, part.reader.headers
    if disposition.is_extended:
        raise _strict_fault(part, "has filename*: send filename as UTF-8")
    for text in (disposition.name, disposition.filename or ""):
        if _CONTROL.search(text):
            raise _strict_fault(part, "has control bytes or invalid UTF-8 in its name")
        if _ESCAPE.search(text):
            raise _strict_fault(part, "has a quote, a backslash or %22 in its name, which some parsers unescape")
    if _CONTROL.search((part.content_type or "").replace("\t", " ")):
        raise _strict_fault(part, "has control bytes or invalid UTF-8 in its Content-Type")
    for name in _SINGLE:
        if len(headers.getall(name, ())) > 1:
            raise _strict_fault(part, f"has {name} twice")
    encoding = headers.get("Content-Transfer-Encoding", "binary")
    if encoding.strip().lower() not in _PLAIN_ENCODINGS:
        raise _strict_fault(part, "has a Content-Transfer-Encoding other than binary (RFC 7578 section 4.7)")


def _strict_fault(part: Part, what: str) -> Fault:
    return Fault(
        FaultKind.BAD_MULTIPART,
        f"Part {part.number} {what}: multipart: strict on this route refuses what parsers interpret differently.",
    )

"""What `multipart: strict` refuses beyond what every form is held to: whatever is known to be read in two ways.

Werkzeug, python-multipart, multipart and Django differ in: `filename*` beside or instead of `filename`, control bytes
and bytes that are no UTF-8 in names, quotes and backslashes and their percent-encoding there, header fields that stand
twice, encodings of the transfer, folded lines (see `content.FormContent`).
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
    """Raises Fault BAD_MULTIPART for a part that parsers read in different ways."""
    said, headers = part.disposition, part.reader.headers
    if said.is_extended:
        raise _refused(part, "has filename*: send filename as UTF-8")
    for text in (said.name, said.filename or ""):
        if _CONTROL.search(text):
            raise _refused(part, "has control bytes, or bytes that are no UTF-8, in its name")
        if _ESCAPE.search(text):
            raise _refused(part, "has a quote, a backslash or %22 in its name, which some parsers unescape")
    for name in _SINGLE:
        if len(headers.getall(name, ())) > 1:
            raise _refused(part, f"has {name} twice")
    encoding = headers.get("Content-Transfer-Encoding", "binary")
    if encoding.strip().lower() not in _PLAIN_ENCODINGS:
        raise _refused(part, "has a Content-Transfer-Encoding other than binary (RFC 7578 section 4.7)")


def _refused(part: Part, what: str) -> Fault:
    return Fault(
        FaultKind.BAD_MULTIPART, f"Part {part.number} {what}: this route takes only what all parsers agree on."
    )

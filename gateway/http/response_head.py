"""Which response heads of upstreams are passed on: exactly those of RFC 9112, judged byte by byte. Pure.

aiohttp parses responses with llhttp in its lenient mode, which reads a head differently from a strict client: it takes
a space before a colon, control bytes, lines that end in LF alone, folded values and any number as a status. A header
that one parser takes for the framing and another for an unknown name desynchronises the client's connection (response
splitting), so such a head is refused as a whole. Rejected: to repair it, as nginx does in part; a service that sends
one is broken, or an attacker wrote into its response.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.errors import Fault, FaultKind
from gateway.http.headers import ReceivedHeaders

#: Limits of one response head: its headers, one line of it, all of it.
MAX_RESPONSE_HEADERS: Final = 200
MAX_RESPONSE_LINE_BYTES: Final = 16 * 1024
MAX_RESPONSE_HEAD_BYTES: Final = 64 * 1024

# Possessive: a head that does not match is found out in one pass.
_NAME: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_TEXT: Final = rb"[\t\x20-\x7e\x80-\xff]*+"
_STATUS_LINE: Final = rb"HTTP/1\.[01] [1-5][0-9][0-9](?: " + _TEXT + rb")?"
_HEAD: Final = re.compile(_STATUS_LINE + rb"\r\n(?:" + _NAME + rb":" + _TEXT + rb"\r\n)*+\r\n")
_INTERIM_HEAD: Final = re.compile(rb"(?=.{9}1(?!01))" + _HEAD.pattern)
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_FIRST_FINAL: Final = 200
#: What is wrong with a line, for the fault: the first pattern that is found at its beginning.
_WRONG_STATUS_LINE: Final = (
    (re.compile(rb"(?!HTTP/1\.[01] )"), "is not a status line of HTTP/1.0 or HTTP/1.1"),
    (re.compile(rb".{9}(?![1-5][0-9][0-9](?: |$))"), "has a status that is not a number from 100 to 599"),
    (re.compile(rb"(?!" + _STATUS_LINE + rb"\Z)"), "has a control byte in its reason"),
)
_WRONG_HEADER: Final = (
    (re.compile(rb"[ \t]"), "begins with white space (a folded value)"),
    (re.compile(_NAME + rb"[ \t]+:"), "has white space before its colon"),
    (re.compile(rb"(?!" + _NAME + rb":)"), "does not begin with a header name and a colon"),
    (re.compile(rb"(?!" + _NAME + rb":" + _TEXT + rb"\Z)"), "has a control byte in its value"),
)


def is_interim(status: int) -> bool:
    """Return whether the final response is still to come; 101 is final (RFC 9110 section 15.2)."""
    return 100 <= status < 200 and status != 101  # noqa: PLR2004 (statuses say more than names for them)


def check_response_head(received: bytes | bytearray, start: int = 0) -> int:
    """Return where the head that begins at `start` ends. Raises Fault BAD_RESPONSE.

    Valid once a parser has found the end of a head: one that is incomplete is refused, too.
    """
    found = _HEAD.match(received, start)
    if found is None or found.end() - start > MAX_RESPONSE_HEAD_BYTES:
        raise explain_bad_head(received, start)
    return found.end()


def explain_bad_head(received: bytes | bytearray, start: int = 0) -> Fault:
    """Return the fault of a head that is refused, here or by the parser: the number of its line and what is wrong.

    Bytes of the head are not quoted, since the client reads the fault.
    """
    while (found := _INTERIM_HEAD.match(received, start)) is not None:
        if (fault := _explain_framing(found[0].split(b"\n"))) is not None:
            return fault
        start = found.end()
    lines = bytes(received[start:]).split(b"\n")
    end = lines.index(b"\r", 1) if b"\r" in lines[1:] else len(lines) - 1
    for number, line in enumerate(lines[:end], 1):
        if not line.endswith(b"\r"):
            return _bad_line(number, "ends in LF without CR")
        if (problem := _problem_of(number, line[:-1])) is not None:
            return _bad_line(number, problem)
    lines = lines[: end + 1]
    for size, limit, unit in (
        (sum(map(len, lines)) + end, MAX_RESPONSE_HEAD_BYTES, "bytes"),
        (end - 1, MAX_RESPONSE_HEADERS, "headers"),
        (max(map(len, lines)), MAX_RESPONSE_LINE_BYTES, "bytes in one line"),
    ):
        if size > limit:
            return _bad_response(f"has more than {limit} {unit}")
    last = lines[end].removesuffix(b"\r")
    if (last or not end) and (problem := _problem_of(end + 1, last)) is not None:
        # Not complete: the parser gave up within it.
        return _bad_line(end + 1, problem)
    return _explain_framing(lines) or _bad_response("is not well-formed HTTP/1.1")


def check_response_framing(version: tuple[int, int], status: int, headers: ReceivedHeaders) -> None:
    """Refuse a response whose end two recipients could find at different bytes. Raises Fault BAD_RESPONSE.

    RFC 9112 section 6.3, and stricter: what it allows to repair is refused.
    """
    if status == 101:  # noqa: PLR2004 (Switching Protocols)
        raise _bad_response("switches protocols without being asked (RFC 9110 section 7.8)")
    lengths, codings = headers.all(b"content-length"), headers.all(b"transfer-encoding")
    if codings:
        if lengths:
            raise _bad_response("has both Content-Length and Transfer-Encoding")
        if version < (1, 1):
            raise _bad_response("has a Transfer-Encoding, which HTTP/1.0 does not know")
        if len(codings) > 1 or codings[0].strip(b" \t").lower() != b"chunked":
            raise _bad_response("has a Transfer-Encoding other than chunked, once")
        if is_interim(status):
            raise _bad_response("is interim and has a body")
    if lengths:
        if len(lengths) > 1:
            raise _bad_response("has more than one Content-Length")
        if not _LENGTH.fullmatch(lengths[0]):
            raise _bad_response("has a Content-Length that is no number")
        if status < _FIRST_FINAL and is_interim(status) and int(lengths[0]):
            raise _bad_response("is interim and has a body")


def _explain_framing(lines: list[bytes]) -> Fault | None:
    version, status = (1, lines[0][7] - ord("0")), int(lines[0][9:12])
    headers = (line.partition(b":") for line in lines[1:] if line.strip())
    try:
        check_response_framing(version, status, ReceivedHeaders([(name, value.strip()) for name, _, value in headers]))
    except Fault as fault:
        return fault
    return None


def _problem_of(number: int, line: bytes) -> str | None:
    for pattern, problem in _WRONG_STATUS_LINE if number == 1 else _WRONG_HEADER:
        if pattern.match(line):
            return problem
    return None


def _bad_line(number: int, problem: str) -> Fault:
    return Fault(
        FaultKind.BAD_RESPONSE, f"Line {number} of the upstream's response {problem} (RFC 9112): see the upstream."
    )


def _bad_response(problem: str) -> Fault:
    return Fault(FaultKind.BAD_RESPONSE, f"The upstream's response head {problem} (RFC 9112): see the upstream.")

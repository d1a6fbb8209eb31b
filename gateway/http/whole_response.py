"""Reads a response that came whole and in the plainest form, most of those that are small. Pure.

aiohttp's parser makes ten objects of a head and one of a body, a tenth of what a small exchange costs. Here one regular
expression decides whether the bytes are exactly one response without anything that could be read in two ways, and
another one divides its lines. Whatever else came goes to the parser, which decides as ever. What is read here, the
parser reads in the same way: tests/upstream/test_whole_response.py holds that.

    never read here                                             since
    ----------------------------------------------------------  -------------------------------------------------
    a part of a response, or more than one                      `is_begun`, or the next one is yet to be found
    anything without exactly one Content-Length                 chunks, or the close of the connection, end it
    1xx, 204, 304                                               they have no body, whatever their headers say
    Connection with anything but keep-alive, Upgrade            it names further headers, or ends the connection
    HTTP/1.0                                                    the connection ends, most often
    spaces around names and values, LF without CR, empty values they are read in more than one way
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from gateway.http.headers import KEEP_ALIVE, ReceivedHeaders
from gateway.http.plain_lines import HEADER, JUDGED_BY_PARSER, LENGTH, LINES, MAX_HEAD_BYTES, MAX_HEADERS

#: A body up to this size is read, and awaited.
MAX_WHOLE_BYTES: Final = 64 * 1024
# RFC 9112 section 4.
_HEAD: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9]) (|[!-~](?:[ -~]*+(?<! ))?)\r\n" + LINES)
_BODILESS: Final = frozenset({204, 304})
#: By head as received, those that were read before: at high rates the heads of a service are the same within a second.
_HEADS: Final[dict[bytes, _Head]] = {}
_MAX_HEADS: Final = 64
_MAX_REMEMBERED_BYTES: Final = 512


class WholeResponse(NamedTuple):
    """A response with its whole body."""

    status: int
    reason: bytes
    headers: ReceivedHeaders
    body: bytes
    #: Content-Length as declared, also where there is no body (304); None without one.
    length: int | None
    #: Bytes of the body as the head says; None where it does not.
    body_length: int | None


class _Head(NamedTuple):
    """A head of the plainest form."""

    status: int
    reason: bytes
    headers: ReceivedHeaders
    length: int


def read_whole_response(data: bytes) -> WholeResponse | None:
    """Return the response to a request other than HEAD, None if `data` is anything but one of the plainest form."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
    raw = data[:end]
    head = _HEADS.get(raw) or _read_head(raw)
    if head is None:
        return None
    status, reason, headers, length = head
    if len(data) - end != length or length > MAX_WHOLE_BYTES:
        return None
    return WholeResponse(status, reason, headers, data[end:], length, length)


def is_begun(data: bytes) -> bool:
    """Return whether `data` is a head of the plainest form with a part of its body, or nothing of it."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
    head = _HEADS.get(data[:end]) or _read_head(data[:end])
    return head is not None and len(data) - end < head.length <= MAX_WHOLE_BYTES


def _read_head(raw: bytes) -> _Head | None:
    """Return the head that these bytes are, and remember it; None if it is not of the plainest form."""
    found = _HEAD.fullmatch(raw)
    if found is None:
        return None
    code, reason, lines = found.groups()
    pairs = HEADER.findall(lines)
    headers, status = ReceivedHeaders(pairs), int(code)
    values = headers.values
    lengths = values.get(b"content-length", ())
    if len(lengths) != 1 or LENGTH.fullmatch(lengths[0]) is None:
        return None
    if status in _BODILESS or len(pairs) > MAX_HEADERS or not JUDGED_BY_PARSER.isdisjoint(values):
        return None
    if b"connection" in values and (len(values[b"connection"]) > 1 or values[b"connection"][0] not in KEEP_ALIVE):
        return None
    head = _Head(status, reason, headers, int(lengths[0]))
    # A cookie is set once.
    if len(raw) <= _MAX_REMEMBERED_BYTES and b"set-cookie" not in values:
        if len(_HEADS) >= _MAX_HEADS:
            _HEADS.clear()
        _HEADS[raw] = head
    return head

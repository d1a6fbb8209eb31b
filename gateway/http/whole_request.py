"""Reads a request that came whole and in the plainest form, most of those that are small. Pure.

aiohttp's parser makes ten objects of a head and one of a body, a tenth of what a small request costs. Here one regular
expression decides whether the bytes are exactly one request without anything that could be read in two ways; then they
are divided at its line breaks. Whatever else came goes to the parser, which decides as ever. What is read here, the
parser reads in the same way: tests/fuzz holds that. A head that was received before, byte for byte, is not read again:
clients that poll, and those that send documents of the same length, repeat theirs.

    never read here                                             since
    ----------------------------------------------------------  -------------------------------------------------
    a part of a head, or more than one request                  it is not whole, or the next one is yet to be found
    Transfer-Encoding, Upgrade, Expect, a repeated name         the parser judges it, or the exchange waits
    Connection with anything but keep-alive, Proxy-Connection   it names further headers, or ends the connection
    HTTP/1.0, CONNECT, TRACE, targets that are no path          few send them
    spaces around names and values, LF without CR, empty values they are read in more than one way
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from gateway.http.headers import KEEP_ALIVE, ReceivedHeaders
from gateway.http.plain_lines import HEADER, JUDGED_BY_PARSER, LENGTH, LINES, MAX_HEAD_BYTES, MAX_HEADERS

# RFC 3986 sections 3.3 and 3.4.
_HEAD: Final = re.compile(
    rb"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) (/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*+) HTTP/1\.1\r\n" + LINES
)
_LEFT_TO_PARSER: Final = JUDGED_BY_PARSER | {b"expect"}
#: By head as received, those that were read before.
_HEADS: Final[dict[bytes, _Head]] = {}
_MAX_HEADS: Final = 64
#: To look a longer one up takes as long as to read it.
_MAX_REMEMBERED_BYTES: Final = 1024
#: Differ from request to request.
_UNIQUE: Final = frozenset({b"x-request-id", b"traceparent"})


class _Head(NamedTuple):
    """A head of the plainest form."""

    method: str
    path: str
    headers: ReceivedHeaders
    #: Of the body, in bytes.
    length: int


class WholeRequest:
    """A request with its whole body. It has what is used of the head that aiohttp's parser makes, too."""

    __slots__ = ("began_at", "body", "headers", "method", "path")

    #: As the parser has them.
    version: tuple[int, int] = (1, 1)
    should_close = False
    upgrade = False
    chunked = False

    def __init__(self, method: str, path: str, headers: ReceivedHeaders, body: bytes) -> None:
        self.method = method
        #: The target as it was sent.
        self.path = path
        self.headers = headers
        self.body = body
        #: When its head was received, on the monotonic clock; None if its body came with it.
        self.began_at: float | None = None


def read_whole_request(data: bytes) -> WholeRequest | int | None:
    """Return the request that `data` is, None if it is anything but exactly one of the plainest form.

    Where only the rest of its body is missing, return how many bytes that are.
    """
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
    raw = data[:end]
    head = (_HEADS.get(raw) if end <= _MAX_REMEMBERED_BYTES else None) or _read_head(raw)
    if head is None:
        return None
    method, path, headers, length = head
    body = data[end:]
    missing = length - len(body)
    if missing:
        return missing if missing > 0 else None
    return WholeRequest(method, path, headers, body)


def _read_head(raw: bytes) -> _Head | None:
    """Return the head that these bytes are, and remember it; None if it is not of the plainest form."""
    found = _HEAD.fullmatch(raw)
    if found is None:
        return None
    method, path, lines = found.groups()
    pairs = HEADER.findall(lines)
    headers = ReceivedHeaders(pairs, len(lines))
    values = headers.values
    if len(values) != len(pairs) or len(pairs) > MAX_HEADERS or not _LEFT_TO_PARSER.isdisjoint(values):
        return None
    if b"host" not in values or (b"connection" in values and values[b"connection"][0] not in KEEP_ALIVE):
        return None
    length = 0
    if b"content-length" in values:
        declared = values[b"content-length"][0]
        if LENGTH.fullmatch(declared) is None:
            return None
        length = int(declared)
    head = _Head(method.decode(), path.decode(), headers, length)
    if len(raw) <= _MAX_REMEMBERED_BYTES and _UNIQUE.isdisjoint(values):
        if len(_HEADS) >= _MAX_HEADS:
            # A client that changes its heads costs all of them a reading.
            _HEADS.clear()
        _HEADS[raw] = head
    return head

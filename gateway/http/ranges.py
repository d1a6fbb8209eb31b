"""Conditional requests and byte ranges (RFC 9110 sections 13 and 14): what a request for a file gets.

The caller evaluates the conditions first, then selects the range (RFC 9110 section 13.2.2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from typing import Final

from gateway.errors import Fault, FaultKind
from gateway.http.headers import Header, ReceivedHeaders

_RANGE: Final = re.compile(rb"bytes=[ \t]*(\d*)-(\d*)[ \t]*", re.IGNORECASE)
_MAX_DIGITS: Final = 19


@dataclass(frozen=True, slots=True)
class Representation:
    """The file as it is now: its size and validators (RFC 9110 section 8.8)."""

    size: int
    etag: bytes
    #: Seconds since the epoch. HTTP dates have no fractions, so comparisons drop them.
    modified_seconds: float

    def headers(self) -> list[Header]:
        """Return the headers with the validators, for responses 200, 206 and 304."""
        modified = formatdate(self.modified_seconds, usegmt=True).encode()
        return [(b"ETag", self.etag), (b"Last-Modified", modified), (b"Accept-Ranges", b"bytes")]


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from `first` to `last`, both included."""

    first: int
    last: int


def is_unchanged(headers: ReceivedHeaders, file: Representation) -> bool:
    """Evaluate the conditions in the order of RFC 9110 section 13.2.2; return whether the response is 304.

    Raises Fault PRECONDITION_FAILED.
    """
    if tags := headers.all(b"if-match"):
        if not _has_tag(tags, file.etag, is_weak=False):
            raise _precondition_failed()
    elif (since := _date(headers.first(b"if-unmodified-since"))) is not None and int(file.modified_seconds) > since:
        raise _precondition_failed()
    if tags := headers.all(b"if-none-match"):
        return _has_tag(tags, file.etag, is_weak=True)
    since = _date(headers.first(b"if-modified-since"))
    return since is not None and int(file.modified_seconds) <= since


def select_range(method: str, headers: ReceivedHeaders, file: Representation) -> ByteRange | None:
    """Return the range a request asks for, None for the whole file. Raises Fault RANGE_NOT_SATISFIABLE.

    > A server MAY ignore the Range header field. (RFC 9110 section 14.2)

    The whole file is sent for a malformed Range, for several ranges at once, and where If-Range names another version.
    """
    ranges = headers.all(b"range")
    if len(ranges) != 1 or method != "GET" or not _is_if_range_met(headers.first(b"if-range"), file):
        return None
    matched = _RANGE.fullmatch(ranges[0])
    if matched is None or max(len(matched[1]), len(matched[2])) > _MAX_DIGITS:
        return None
    return _range_of(matched[1], matched[2], file.size)


def _range_of(start: bytes, end: bytes, size: int) -> ByteRange | None:
    """Return the range START-END, START- or -SUFFIX of a file (RFC 9110 section 14.1.2)."""
    if not start and not end:
        return None
    if start and end and int(end) < int(start):
        return None
    last = size - 1
    if not start:
        # A suffix of zero bytes cannot be satisfied.
        first = max(0, size - int(end)) if int(end) else size
    else:
        first = int(start)
        last = min(int(end), last) if end else last
    if first >= size:
        raise Fault(
            FaultKind.RANGE_NOT_SATISFIABLE,
            f"The file has {size} bytes, the range begins at {first}.",
            headers=((b"Content-Range", b"bytes */%d" % size),),
        )
    return ByteRange(first, last)


def _is_if_range_met(condition: bytes | None, file: Representation) -> bool:
    """Evaluate If-Range (RFC 9110 section 13.1.5): a strong validator, or the exact date."""
    if condition is None:
        return True
    if condition.startswith((b'"', b"W/")):
        return _is_same(condition, file.etag, is_weak=False)
    return _date(condition) == int(file.modified_seconds)


def _has_tag(values: Sequence[bytes], etag: bytes, *, is_weak: bool) -> bool:
    """Return whether a list of entity tags has this one, or is `*`."""
    tags = [tag.strip() for value in values for tag in value.split(b",")]
    return b"*" in tags or any(_is_same(tag, etag, is_weak=is_weak) for tag in tags)


def _is_same(one: bytes, other: bytes, *, is_weak: bool) -> bool:
    """Compare entity tags, weakly or strongly: two weak tags never match strongly (RFC 9110 section 8.8.3.2)."""
    if is_weak:
        return one.removeprefix(b"W/") == other.removeprefix(b"W/")
    return one == other and not one.startswith(b"W/")


def _date(value: bytes | None) -> int | None:
    """Return a date in seconds since the epoch, None for an invalid one (ignored, RFC 9110 section 13.1.3)."""
    if value is None:
        return None
    try:
        return int(parsedate_to_datetime(value.decode("latin-1")).timestamp())
    except (ValueError, OverflowError):
        return None


def _precondition_failed() -> Fault:
    return Fault(FaultKind.PRECONDITION_FAILED, "The file is not the version that the condition names: fetch it again.")

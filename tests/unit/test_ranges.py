"""Conditional requests and ranges as RFC 9110 sections 13 and 14 define them."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Fault, FaultKind
from gateway.http.headers import ReceivedHeaders
from gateway.http.ranges import ByteRange, Representation, is_unchanged, select_range

MODIFIED = 1_700_000_000
ETAG = b'"v1"'
FILE = Representation(1000, ETAG, MODIFIED + 0.5)
EMPTY = Representation(0, ETAG, MODIFIED)
SAME, OLDER, NEWER = (formatdate(MODIFIED + shift, usegmt=True).encode() for shift in (0, -60, 60))


def received(*headers: tuple[bytes, bytes]) -> ReceivedHeaders:
    return ReceivedHeaders(headers)


def test_validators_are_sent_as_headers() -> None:
    assert FILE.headers() == [(b"ETag", ETAG), (b"Last-Modified", SAME), (b"Accept-Ranges", b"bytes")]


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"If-Match", ETAG),),
        ((b"If-Match", b"*"),),
        ((b"If-Match", b'"v0"'), (b"If-Match", b'"v2" , "v1"')),
        ((b"If-Unmodified-Since", SAME),),
        ((b"If-Unmodified-Since", NEWER),),
        ((b"If-Unmodified-Since", b"yesterday"),),
        ((b"If-None-Match", b'"v2"'),),
        ((b"If-Modified-Since", OLDER),),
        ((b"If-Modified-Since", b"yesterday"),),
        ((b"If-Modified-Since", b"Tue, 99 Nov 99999 22:13:20 GMT"),),
    ],
)
def test_file_is_sent_where_every_condition_holds(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    assert not is_unchanged(received(*headers), FILE)


@pytest.mark.parametrize(
    "header",
    [
        (b"If-None-Match", ETAG),
        (b"If-None-Match", b'W/"v1"'),
        (b"If-None-Match", b'"v2", W/"v1"'),
        (b"If-None-Match", b"*"),
        (b"If-Modified-Since", SAME),
        (b"If-Modified-Since", NEWER),
    ],
)
def test_file_the_client_has_is_not_sent_again(header: tuple[bytes, bytes]) -> None:
    assert is_unchanged(received(header), FILE)


@pytest.mark.parametrize("header", [(b"If-Match", b'"v2"'), (b"If-Match", b'W/"v1"'), (b"If-Unmodified-Since", OLDER)])
def test_precondition_that_fails_is_a_fault(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(Fault) as raised:
        is_unchanged(received(header), FILE)
    assert raised.value.kind is FaultKind.PRECONDITION_FAILED


def test_tags_decide_and_dates_are_ignored_where_both_are_given() -> None:
    assert not is_unchanged(received((b"If-None-Match", b'"v2"'), (b"If-Modified-Since", SAME)), FILE)
    assert not is_unchanged(received((b"If-Match", ETAG), (b"If-Unmodified-Since", OLDER)), FILE)


def test_failed_precondition_comes_before_not_modified() -> None:
    with pytest.raises(Fault):
        is_unchanged(received((b"If-None-Match", ETAG), (b"If-Match", b'"v2"')), FILE)


@pytest.mark.parametrize(
    ("value", "first", "last"),
    [
        (b"bytes=0-0", 0, 0),
        (b"bytes=10-19", 10, 19),
        (b"bytes=990-", 990, 999),
        (b"bytes=-5", 995, 999),
        (b"bytes=-5000", 0, 999),
        (b"bytes=5-9000", 5, 999),
        (b"Bytes= 1-2\t", 1, 2),
    ],
)
def test_range_within_the_file_is_selected(value: bytes, first: int, last: int) -> None:
    assert select_range("GET", received((b"Range", value)), FILE) == ByteRange(first, last)


@pytest.mark.parametrize(
    "value", [b"bytes=5-2", b"bytes=-", b"bytes=a-b", b"lines=1-2", b"bytes=0-1,3-4", b"bytes=" + b"9" * 30 + b"-"]
)
def test_malformed_range_selects_the_whole_file(value: bytes) -> None:
    assert select_range("GET", received((b"Range", value)), FILE) is None


def test_range_is_for_get_and_stands_once() -> None:
    one = (b"Range", b"bytes=0-1")
    assert select_range("GET", received(), FILE) is None
    assert select_range("HEAD", received(one), FILE) is None
    assert select_range("GET", received(one, one), FILE) is None


@pytest.mark.parametrize(
    ("file", "value"), [(FILE, b"bytes=1000-"), (FILE, b"bytes=-0"), (EMPTY, b"bytes=0-"), (EMPTY, b"bytes=-5")]
)
def test_range_after_the_end_is_a_fault_with_the_size(file: Representation, value: bytes) -> None:
    with pytest.raises(Fault) as raised:
        select_range("GET", received((b"Range", value)), file)
    assert raised.value.kind is FaultKind.RANGE_NOT_SATISFIABLE
    assert raised.value.headers == ((b"Content-Range", b"bytes */%d" % file.size),)


@pytest.mark.parametrize(
    ("condition", "is_met"),
    [
        (ETAG, True),
        (b'"v2"', False),
        (b'W/"v1"', False),
        (SAME, True),
        (OLDER, False),
        (NEWER, False),
        (b"yesterday", False),
    ],
)
def test_range_of_another_version_selects_the_whole_file(condition: bytes, is_met: bool) -> None:
    selected = select_range("GET", received((b"Range", b"bytes=0-1"), (b"If-Range", condition)), FILE)
    assert selected == (ByteRange(0, 1) if is_met else None)


def test_weak_tag_of_the_file_matches_weakly_only() -> None:
    """It matched strongly and never weakly, the wrong way round."""
    weak = Representation(1000, b'W/"v1"', MODIFIED)
    assert is_unchanged(received((b"If-None-Match", b'W/"v1"')), weak)
    assert is_unchanged(received((b"If-None-Match", b'"v1"')), weak)
    assert select_range("GET", received((b"Range", b"bytes=0-1"), (b"If-Range", b'W/"v1"')), weak) is None
    with pytest.raises(Fault):
        is_unchanged(received((b"If-Match", b'W/"v1"')), weak)


@given(value=st.binary(max_size=80), name=st.sampled_from([b"If-Modified-Since", b"If-None-Match", b"If-Range"]))
def test_no_value_of_a_condition_is_an_error(value: bytes, name: bytes) -> None:
    headers = received((name, value), (b"Range", b"bytes=0-1"))
    assert is_unchanged(headers, FILE) in {True, False}
    assert select_range("GET", headers, FILE) in {None, ByteRange(0, 1)}

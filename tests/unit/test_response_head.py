"""Response heads: which are passed on, and what the fault of any other says."""

from __future__ import annotations

import pytest

from gateway.errors import Fault, FaultKind
from gateway.http.headers import Header, ReceivedHeaders
from gateway.http.response_head import (
    MAX_RESPONSE_HEAD_BYTES,
    check_response_framing,
    check_response_head,
    explain_bad_head,
    is_interim,
)

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "head",
    [
        OK + b"\r\n",
        b"HTTP/1.0 599\r\n\r\n",
        b"HTTP/1.1 204 \r\n\r\n",
        b"HTTP/1.1 200 \xe4\xb8\x80\t!\r\nA:b\r\nC:\t d\xff \r\n!#$%&'*+.^_`|~0-9: \r\nE:\r\n\r\n",
    ],
)
def test_well_formed_head_ends_where_its_empty_line_ends(head: bytes) -> None:
    assert check_response_head(head + b"body\r\n\r\n") == len(head)
    assert check_response_head(b"HTTP/1.1 100 C\r\n\r\n" + head, 18) == 18 + len(head)


@pytest.mark.parametrize(
    ("head", "detail"),
    [
        (b"hello\r\n\r\n", "Line 1 of the upstream's response is not a status line of HTTP/1.0 or HTTP/1.1"),
        (b"hello", "Line 1 of the upstream's response is not a status line of HTTP/1.0 or HTTP/1.1"),
        (b"", "Line 1 of the upstream's response is not a status line of HTTP/1.0 or HTTP/1.1"),
        (b"\r\n" + OK + b"\r\n", "Line 1 of the upstream's response is not a status line of HTTP/1.0 or HTTP/1.1"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "Line 1 of the upstream's response is not a status line of HTTP/1.0 or HTTP/1.1"),
        (b"HTTP/1.2 200 OK\r\n\r\n", "Line 1 of the upstream's response is not a status line of HTTP/1.0 or HTTP/1.1"),
        (b"RTSP/1.0 200 OK\r\n\r\n", "Line 1 of the upstream's response is not a status line of HTTP/1.0 or HTTP/1.1"),
        (b"HTTP/1.1 099 OK\r\n\r\n", "Line 1 of the upstream's response has a status that is not a number from 100 to"),
        (b"HTTP/1.1 600 OK\r\n\r\n", "Line 1 of the upstream's response has a status that is not a number from 100 to"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "Line 1 of the upstream's response has a status that is not a number from 100"),
        (b"HTTP/1.1  200 OK\r\n\r\n", "Line 1 of the upstream's response has a status that is not a number from 100"),
        (b"HTTP/1.1 20\r\n\r\n", "Line 1 of the upstream's response has a status that is not a number from 100 to 599"),
        (b"HTTP/1.1 200 O\0K\r\n\r\n", "Line 1 of the upstream's response has a control byte in its reason"),
        (OK + b"A: b\nB: c\r\n\r\n", "Line 2 of the upstream's response ends in LF without CR"),
        (OK + b"A: b\r\n\n", "Line 3 of the upstream's response ends in LF without CR"),
        (OK + b"A: b\r\n c\r\n\r\n", "Line 3 of the upstream's response begins with white space (a folded value)"),
        (OK + b"A: b\r\n\tc: d\r\n\r\n", "Line 3 of the upstream's response begins with white space (a folded value)"),
        (OK + b"Content-Length : 2\r\n\r\n", "Line 2 of the upstream's response has white space before its colon"),
        (OK + b"Connection\t: x\r\n\r\n", "Line 2 of the upstream's response has white space before its colon"),
        (OK + b"A B: c\r\n\r\n", "Line 2 of the upstream's response does not begin with a header name and a colon"),
        (OK + b": c\r\n\r\n", "Line 2 of the upstream's response does not begin with a header name and a colon"),
        (OK + b"abc\r\n\r\n", "Line 2 of the upstream's response does not begin with a header name and a colon"),
        (OK + b"\xe4: c\r\n\r\n", "Line 2 of the upstream's response does not begin with a header name and a colon"),
        (OK + b"A: b\0\r\n\r\n", "Line 2 of the upstream's response has a control byte in its value"),
        (OK + b"A: b\rc\r\n\r\n", "Line 2 of the upstream's response has a control byte in its value"),
        (OK + b"A: b\x7f\r\n\r\n", "Line 2 of the upstream's response has a control byte in its value"),
        (OK + b"A: b\r\r\n\r\n", "Line 2 of the upstream's response has a control byte in its value"),
        (OK + b"A: \x01", "Line 2 of the upstream's response has a control byte in its value"),
        (
            b"HTTP/1.1 103 E\r\n\r\n" + OK + b"A\r\n\r\n",
            "Line 2 of the upstream's response does not begin with a header",
        ),
        (b"HTTP/1.1 103 E\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", "is interim and has a body"),
        (OK + b"A: b\r\n" * 201, "The upstream's response head has more than 200 headers"),
        (OK + b"A: " + b"x" * 20_000, "The upstream's response head has more than 16384 bytes in one line"),
        (OK + b"A: b\r\n", "The upstream's response head is not well-formed HTTP/1.1"),
        (OK + b"Content-Length: 1\r\nContent-Length: 1\r\n", "has more than one Content-Length"),
        (OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked", "has both Content-Length and Transfer-Encoding"),
    ],
)
def test_fault_of_any_other_head_names_its_line_and_what_is_wrong(head: bytes, detail: str) -> None:
    fault = explain_bad_head(head)
    assert fault.kind is FaultKind.BAD_RESPONSE
    assert detail in fault.detail


def test_malformed_head_is_refused() -> None:
    with pytest.raises(Fault, match="before its colon"):
        check_response_head(OK + b"A : b\r\n\r\n")


def test_head_over_the_limit_is_refused_complete_or_not() -> None:
    head = OK + b"".join(b"A%d: %s\r\n" % (number, b"x" * 8000) for number in range(9))
    assert len(head) > MAX_RESPONSE_HEAD_BYTES
    with pytest.raises(Fault, match="more than 65536 bytes"):
        check_response_head(head + b"\r\n")
    assert "more than 65536 bytes" in explain_bad_head(head).detail


LENGTH = (b"Content-Length", b"2")
CHUNKED = (b"Transfer-Encoding", b"Chunked")


@pytest.mark.parametrize(
    ("version", "status", "fields"),
    [
        ((1, 1), 200, [LENGTH]),
        ((1, 0), 200, [LENGTH]),
        ((1, 1), 200, [CHUNKED]),
        ((1, 1), 200, []),
        ((1, 1), 304, [LENGTH]),
        ((1, 1), 103, [(b"Content-Length", b"0")]),
        ((1, 1), 100, []),
    ],
)
def test_framing_with_one_meaning_is_passed_on(version: tuple[int, int], status: int, fields: list[Header]) -> None:
    check_response_framing(version, status, ReceivedHeaders(fields))


@pytest.mark.parametrize(
    ("version", "status", "fields", "detail"),
    [
        ((1, 1), 200, [LENGTH, CHUNKED], "both"),
        ((1, 1), 200, [LENGTH, LENGTH], "more than one Content-Length"),
        ((1, 1), 200, [(b"Content-Length", b"2, 2")], "no number"),
        ((1, 1), 200, [(b"Content-Length", b"+2")], "no number"),
        ((1, 1), 200, [(b"Content-Length", b"")], "no number"),
        ((1, 1), 200, [(b"Content-Length", b"9" * 19)], "no number"),
        ((1, 0), 200, [CHUNKED], "HTTP/1.0"),
        ((1, 1), 200, [CHUNKED, CHUNKED], "other than chunked, once"),
        ((1, 1), 200, [(b"Transfer-Encoding", b"gzip, chunked")], "other than chunked, once"),
        ((1, 1), 200, [(b"Transfer-Encoding", b"\x0bchunked")], "other than chunked, once"),
        ((1, 1), 103, [LENGTH], "interim"),
        ((1, 1), 100, [CHUNKED], "interim"),
        ((1, 1), 101, [], "switches protocols"),
    ],
)
def test_framing_that_could_be_read_twice_is_refused(
    version: tuple[int, int], status: int, fields: list[Header], detail: str
) -> None:
    with pytest.raises(Fault, match=detail) as caught:
        check_response_framing(version, status, ReceivedHeaders(fields))
    assert caught.value.kind is FaultKind.BAD_RESPONSE


def test_interim_responses_are_those_before_200_except_switching_protocols() -> None:
    assert [status for status in range(99, 202) if not is_interim(status)] == [99, 101, 200, 201]

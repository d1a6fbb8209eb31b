"""Which bytes are read as one whole response without a parser; tests/upstream/test_whole_response.py compares more."""

from __future__ import annotations

import pytest

from gateway.http import whole_response
from gateway.http.whole_response import MAX_WHOLE_BYTES, is_begun, read_whole_response


def head(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK", length: int = 2) -> bytes:
    return b"\r\n".join([first, *lines, b"Content-Length: %d" % length, b"", b""])


def test_response_is_read_as_it_was_sent() -> None:
    for _ in range(2):
        response = read_whole_response(
            head(b"X-A: b", b"Connection: keep-alive", first=b"HTTP/1.1 404 Not Found") + b"ok"
        )
        assert response is not None
        assert (response.status, response.reason, response.body) == (404, b"Not Found", b"ok")
        assert response.headers.pairs[0] == (b"X-A", b"b")
        assert (response.length, response.body_length) == (2, 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n\r\n",
        head(b"Content-Length: 2") + b"ok",
        head(b"X-A: b ") + b"ok",
        head(b"Transfer-Encoding: chunked") + b"ok",
        head(b"Connection: close") + b"ok",
        head(first=b"HTTP/1.1 204 No Content", length=0),
        head(*[b"X-A: b"] * 64) + b"ok",
        head() + b"o",
        head() + b"okx",
        head(length=MAX_WHOLE_BYTES + 1) + b"x" * (MAX_WHOLE_BYTES + 1),
    ],
)
def test_anything_else_is_left_to_the_parser(data: bytes) -> None:
    assert read_whole_response(data) is None


def test_response_whose_body_is_still_to_come_has_begun() -> None:
    assert is_begun(head())
    assert is_begun(head() + b"o")
    assert not is_begun(head() + b"ok")
    assert not is_begun(head()[:-1])
    assert not is_begun(head(length=MAX_WHOLE_BYTES + 1))


def test_few_heads_are_remembered_and_none_that_sets_a_cookie() -> None:
    for number in range(100):
        assert read_whole_response(head(b"X-A: %d" % number) + b"ok") is not None
    assert len(whole_response._HEADS) <= 64
    cookie = head(b"Set-Cookie: a=b")
    assert read_whole_response(cookie + b"ok") is not None
    assert cookie not in whole_response._HEADS

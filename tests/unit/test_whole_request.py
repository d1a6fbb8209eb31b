"""Which bytes are read as one whole request without a parser, and what is read of them."""

from __future__ import annotations

import pytest

from gateway.http import whole_request
from gateway.http.headers import ReceivedHeaders
from gateway.http.whole_request import WholeRequest, read_whole_request

HOST = b"Host: gw"


def head(*lines: bytes, first: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([first, *lines, b"", b""])


def test_request_is_read_as_it_was_sent() -> None:
    data = head(b"host: gw:80", b"X-A:  b".replace(b"  ", b" "), b"Content-Length: 4", first=b"PUT /a%20b?c=d HTTP/1.1")
    request = read_whole_request(data + b"\r\n\r\n")
    assert isinstance(request, WholeRequest)
    assert (request.method, request.path, request.version) == ("PUT", "/a%20b?c=d", (1, 1))
    assert list(request.headers) == [(b"host", b"gw:80"), (b"X-A", b"b"), (b"Content-Length", b"4")]
    assert request.headers.first(b"x-a") == b"b"
    assert request.body == b"\r\n\r\n"
    assert request.headers.size_bytes == ReceivedHeaders(request.headers.pairs).size_bytes


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"])
@pytest.mark.parametrize("more", [[], [b"Connection: keep-alive"], [b"Connection: Keep-Alive"], [b"Content-Length: 0"]])
def test_request_without_a_body_is_read(method: bytes, more: list[bytes]) -> None:
    request = read_whole_request(head(HOST, *more, first=method + b" / HTTP/1.1"))
    assert isinstance(request, WholeRequest)
    assert request.body == b""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n" + head(HOST),
        head(HOST)[:-1],
        head(HOST) + b"x",
        head(HOST) + head(HOST),
        head(HOST).replace(b"\r\n", b"\n"),
        head(HOST, b"Content-Length: 3") + b"abcd",
        head(HOST, b"Content-Length: +0"),
        head(HOST, b"Content-Length: 0, 0"),
        head(HOST, b"Content-Length: 0", b"Content-Length: 0"),
        head(HOST, b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head(HOST, b"Upgrade: h2c"),
        head(HOST, b"Expect: 100-continue"),
        head(HOST, b"Connection: close"),
        head(HOST, b"Proxy-Connection: close"),
        head(HOST, b"Connection: keep-alive, X-A"),
        head(HOST, b"Connection: keep-alive", b"connection: close"),
        head(HOST, HOST),
        head(HOST, b"Cookie: a", b"cookie: b"),
        head(b"Accept: */*"),
        head(b"Host:gw"),
        head(b"Host:  gw"),
        head(b"Host: gw "),
        head(b"Host: "),
        head(b"Host : gw"),
        head(HOST, b" folded"),
        head(HOST, b"X-A: a\0b"),
        head(HOST, b"X-A: a\rb"),
        head(HOST, b"X-A"),
        head(HOST, b": b"),
        head(HOST, first=b"GET / HTTP/1.0"),
        head(HOST, first=b"GET  / HTTP/1.1"),
        head(HOST, first=b"get / HTTP/1.1"),
        head(HOST, first=b"TRACE / HTTP/1.1"),
        head(HOST, first=b"OPTIONS * HTTP/1.1"),
        head(HOST, first=b"GET http://gw/ HTTP/1.1"),
        head(HOST, first=b"GET /a#b HTTP/1.1"),
        head(HOST, first=b"GET /\xc3\xa9 HTTP/1.1"),
        head(HOST, b"X-A: " + b"b" * 8000),
        head(HOST, *(b"X-%d: b" % number for number in range(64))),
        head(),
    ],
)
def test_anything_else_is_left_to_the_parser(data: bytes) -> None:
    assert read_whole_request(data) is None


def test_rest_of_a_body_is_counted() -> None:
    data = head(HOST, b"Content-Length: 3", first=b"POST / HTTP/1.1")
    assert [read_whole_request(data + rest) for rest in (b"", b"a", b"ab")] == [3, 2, 1]
    assert isinstance(read_whole_request(data + b"abc"), WholeRequest)
    assert read_whole_request(head(HOST, b"Content-Length: 3", b"Expect: 100-continue")) is None


def test_head_that_was_read_before_is_read_for_another_body() -> None:
    data = head(HOST, b"Content-Length: 2", first=b"POST / HTTP/1.1")
    first, second = read_whole_request(data + b"ok"), read_whole_request(data + b"ko")
    assert isinstance(first, WholeRequest)
    assert isinstance(second, WholeRequest)
    assert (first.body, second.body) == (b"ok", b"ko")
    assert first.headers is second.headers
    assert read_whole_request(data + b"okx") is None
    assert read_whole_request(data + b"o") == 1
    assert read_whole_request(data[:-1]) is None


def test_few_heads_are_remembered_and_none_that_is_long_or_will_not_come_again() -> None:
    heads = whole_request._HEADS
    heads.clear()
    for line in (b"X-A: " + b"b" * 1000, b"X-Request-Id: 1", b"traceparent: 00-1-1-00"):
        for _ in range(2):
            assert isinstance(read_whole_request(head(HOST, line)), WholeRequest)
    assert read_whole_request(head(HOST, b"Upgrade: h2c")) is None
    assert not heads
    for number in range(1000):
        request = read_whole_request(head(HOST, b"X-A: %d" % number))
        assert isinstance(request, WholeRequest)
        assert request.headers.first(b"x-a") == b"%d" % number
        assert 1 <= len(heads) <= 64

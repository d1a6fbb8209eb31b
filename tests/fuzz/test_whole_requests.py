"""Requests that are read without aiohttp's parser: the parser reads them in the same way."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader
from hypothesis import strategies as st

from gateway.aiohttp_seam import peek_buffered
from gateway.downstream.connection import MAX_HEADERS, MAX_LINE_BYTES
from gateway.errors import Fault
from gateway.http.request_head import check_target
from gateway.http.whole_request import WholeRequest, read_whole_request
from tests.fuzz.explore import explore
from tests.fuzz.test_request_heads import requests

pytestmark = pytest.mark.slow

#: What llhttp and aiohttp know by name.
_KNOWN = [b"Proxy-Connection", b"Upgrade", b"Transfer-Encoding", b"Content-Encoding", b"Sec-WebSocket-Key1"]
_NAMES = [b"Accept", b"content-type", b"X-A", b"x_b", b"Cookie", b"Connection", b"Content-Length", *_KNOWN]
_VALUES = [
    b"a",
    b"a b",
    b"\xe4",
    b"keep-alive",
    b"close",
    b"Keep-Alive",
    b"0",
    b"00",
    b"gzip",
    b"multipart/form-data; boundary=x",
]
_TARGETS = [b"/", b"/a?b=c", b"/%2f%", b"//x", b"/a?b?c", b"/;a=b", b"/@:80/*", b"/a=~!$&'()*+,-._"]
_METHODS = [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"]


@st.composite
def plain_requests(draw: Any) -> bytes:
    """Return a request that is plain, most of them, with up to two bytes changed."""
    headers = draw(st.lists(st.tuples(st.sampled_from(_NAMES), st.sampled_from(_VALUES)), max_size=4))
    body = draw(st.sampled_from([b"", b"", b"x", b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n"]))
    if body:
        headers.append((b"Content-Length", b"%d" % len(body)))
    headers.insert(draw(st.integers(0, len(headers))), (b"Host", b"gw"))
    line = draw(st.sampled_from(_METHODS)) + b" " + draw(st.sampled_from(_TARGETS)) + b" HTTP/1.1"
    text = bytearray(b"\r\n".join([line, *map(b": ".join, headers), b"", b""]) + body)
    for at, value in draw(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=2)):
        text[at % len(text)] = value
    return bytes(text)


def parse(loop: asyncio.AbstractEventLoop, data: bytes) -> list[tuple[Any, StreamReader]]:
    """Return what aiohttp's parser makes of some bytes."""
    parser = HttpRequestParser(
        BaseProtocol(loop),
        loop,
        2**16,
        max_line_size=MAX_LINE_BYTES,
        max_field_size=MAX_LINE_BYTES,
        max_headers=MAX_HEADERS,
        payload_exception=ValueError,
        auto_decompress=False,
    )
    messages, upgraded, _ = parser.feed_data(data)
    assert not upgraded
    return list(messages)


def test_request_that_is_read_whole_is_what_the_parser_reads() -> None:
    taken = 0

    def check(data: bytes) -> None:
        nonlocal taken
        request = read_whole_request(data)
        if isinstance(request, int):
            [(_, payload)] = parse(loop, data)
            assert not payload.is_eof()
            # The rest of it, whatever that is, makes it whole.
            whole = read_whole_request(data + b"\n" * request)
            assert isinstance(whole, WholeRequest)
            [(_, payload)] = parse(loop, data + b"\n" * request)
            assert payload.is_eof()
            return
        if request is None:
            return
        taken += 1
        [(message, payload)] = parse(loop, data)
        assert (message.method, message.path, tuple(message.version)) == (request.method, request.path, (1, 1))
        assert tuple(message.raw_headers) == tuple(request.headers)
        assert (message.should_close, message.upgrade, message.chunked) == (False, False, False)
        assert payload.is_eof()
        assert (peek_buffered(payload) if payload.total_bytes else b"") == request.body

    loop = asyncio.new_event_loop()
    try:
        explore(st.one_of(plain_requests(), requests()), check, examples=3000)
        # More of those that are nearly plain: hypothesis takes most of its time for itself.
        generator = random.Random(1)
        for _ in range(20_000):
            check(_mutate(generator))
    finally:
        loop.close()
    assert taken > 5000


_PLAIN = (
    b"GET /a?b HTTP/1.1\r\nHost: gw:80\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: gw\r\nX-A: b c\td\r\nContent-Length: 2\r\n\r\nok",
    b"PUT /%20 HTTP/1.1\r\ncontent-length: 0\r\nHOST: [::1]\r\n\r\n",
)
#: What means something to a parser.
_PIECES = (
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b"\xff", b"\x7f", b"0", b"1", b"A", b"\r\n ", b"\r\n\r\n"),
    *(
        b"Content-Length: 1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Upgrade: a\r\n",
        b"Host",
    ),
)


def _mutate(generator: random.Random) -> bytes:
    text = bytearray(generator.choice(_PLAIN))
    for _ in range(generator.choice((0, 1, 1, 2))):
        at = generator.randrange(len(text) + 1)
        match generator.randrange(3):
            case 0:
                text[at:at] = generator.choice(_PIECES)
            case 1:
                text[at : at + generator.randrange(1, 4)] = b""
            case _:
                text[at : at + 1] = bytes([generator.randrange(256)])
    return bytes(text)


def test_heads_that_the_parser_refuses_are_not_read_whole() -> None:
    loop = asyncio.new_event_loop()
    generator, refused = random.Random(2), 0
    try:
        for _ in range(5000):
            data = _mutate(generator)
            try:
                parse(loop, data)
            except HttpProcessingError:
                refused += 1
                assert read_whole_request(data) is None, data
    finally:
        loop.close()
    assert refused > 500


def test_head_that_is_read_whole_is_checked_like_any_other() -> None:
    request = read_whole_request(b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n")
    assert isinstance(request, WholeRequest)
    with pytest.raises(Fault, match="not host"):
        check_target(request.version, request.method, request.path, request.headers)

"""Responses that are read whole: whatever is, the parser reads in the same way; the plainest ones are."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from gateway.aiohttp_seam import ClientConnection, KeptConnections
from gateway.config.values import Endpoint
from gateway.errors import Fault
from gateway.http import whole_response
from gateway.http.response_head import check_response_framing, is_interim
from gateway.http.whole_response import MAX_WHOLE_BYTES, WholeResponse, is_begun, read_whole_response
from gateway.upstream import RequestHead
from gateway.upstream.request import UpstreamRequest
from gateway.upstream.response import UpstreamResponse
from tests.aiohttp_seam.peers import OneByOne

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PLAIN = {
    "one header": OK,
    "no body": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no reason": b"HTTP/1.1 404 \r\nContent-Length: 2\r\n\r\nok",
    "one letter": b"HTTP/1.1 599 a\r\na: b\r\ncontent-length: 2\r\n\r\nok",
    "redirect": b"HTTP/1.1 301 Moved Permanently\r\nLocation: /a b\r\nContent-Length: 2\r\n\r\nok",
    "kept": b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\nok",
    "repeated": b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nset-cookie: c=d\r\nContent-Length: 2\r\n\r\nok",
    "not ASCII": b"HTTP/1.1 200 OK\r\nX-A: \xe4 \xff\r\nContent-Length: 2\r\n\r\n\xff\0",
    "blank lines in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n\r\n\r\nok\r\n",
    "64 headers": b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 63 + b"Content-Length: 2\r\n\r\nok",
    "coding": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",
}
LEFT_TO_THE_PARSER = {
    "a part": OK[:-1],
    "head only": OK[:-2],
    "more": OK + b"x",
    "two": OK * 2,
    "nothing": b"",
    "interim": b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 0\r\n\r\n",
    "no length": b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nok",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\ncontent-length: 2\r\n\r\nok",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nok",
    "close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    "nominated": b"HTTP/1.1 200 OK\r\nConnection: keep-alive, x-a\r\nContent-Length: 2\r\n\r\nok",
    "proxy": b"HTTP/1.1 200 OK\r\nProxy-Connection: close\r\nContent-Length: 2\r\n\r\nok",
    "old websocket": b"HTTP/1.1 200 OK\r\nSec-WebSocket-Key1: a\r\nContent-Length: 2\r\n\r\nok",
    "upgrade": b"HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.0": OK.replace(b"1.1", b"1.0"),
    "LF": OK.replace(b"\r\n", b"\n"),
    "no reason and no space": b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
    "two spaces": b"HTTP/1.1 200  OK\r\nContent-Length: 2\r\n\r\nok",
    "space after the reason": b"HTTP/1.1 200 OK \r\nContent-Length: 2\r\n\r\nok",
    "no space": b"HTTP/1.1 200 OK\r\nContent-Length:2\r\n\r\nok",
    "space after the value": b"HTTP/1.1 200 OK\r\nX-A: b \r\nContent-Length: 2\r\n\r\nok",
    "space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
    "folded": b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 2\r\n\r\nok",
    "empty value": b"HTTP/1.1 200 OK\r\nX-A: \r\nContent-Length: 2\r\n\r\nok",
    "control": b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 2\r\n\r\nok",
    "CR": b"HTTP/1.1 200 OK\r\nX-A: a\rb\r\nContent-Length: 2\r\n\r\nok",
    "sign": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    "65 headers": b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 64 + b"Content-Length: 2\r\n\r\nok",
    "long": b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 8000 + b"\r\nContent-Length: 2\r\n\r\nok",
}
_TOKENS = [
    b"\r\n",
    b"\r",
    b"\n",
    b": ",
    b":",
    b" ",
    b"\t",
    b"\0",
    b"\xff",
    b"2",
    b"0",
    b"close",
    b"HTTP/1.1 200 OK\r\n",
]
_TOKENS += [line + b"\r\n" for line in (b"Content-Length: 2", b"Transfer-Encoding: chunked", b"Connection: close")]
_TOKENS += [line + b"\r\n" for line in (b"Connection: keep-alive", b"Upgrade: a", b"X-A: b", b"Set-Cookie: a=b; c")]
_TOKENS += [b"Trailer: a\r\n", b"Date: Sun, 29 Nov 2026 16:00:00 GMT\r\n", b"Content-Type: a/b\r\n", b"ok", b"\r\n\r\n"]
_HEADERS = [b"Content-Type: text/plain", b"Date: Sun, 29 Nov 2026 16:00:00 GMT", b"Connection: keep-alive", b"X-A: b,c"]
_HEADERS += [b"Server: a/1 (b)", b"Set-Cookie: a=b", b'ETag: "a"', b"Keep-Alive: timeout=5", b"Vary: *"]
_CODES = [
    b"200 OK",
    b"200 ",
    b"201 Created",
    b"404 Not Found",
    b"500 a",
    b"302 b",
    b"204 c",
    b"304 d",
    b"100 e",
    b"600 f",
]


class Reading(NamedTuple):
    """What is passed on of a response, and whether its connection is kept."""

    status: int
    reason: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    length: int | None
    body_length: int | None
    is_kept: bool


class Idle(asyncio.Transport):
    """A transport of which nothing is read or written."""

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def describe(response: WholeResponse, *, is_kept: bool) -> Reading:
    headers = tuple(response.headers)
    lengths = response.length, response.body_length
    return Reading(response.status, response.reason, headers, response.body, *lengths, is_kept)


async def parse(data: bytes) -> Reading | None:
    """Have the parser read what was received; return the response, None if it is refused or not here whole."""
    connection = ClientConnection(asyncio.get_running_loop(), OneByOne())
    connection.connection_made(Idle())
    kept = KeptConnections(60)
    connection.join(kept, set())
    connection.expect_response(may_have_body=True)
    connection.data_received(data)
    received = connection.received_head
    if connection.exception() is not None or received is None:
        return None
    message, content = received
    if is_interim(message.code) or not content.is_eof() or content.exception() is not None:
        return None
    request = UpstreamRequest(RequestHead("GET", "/", None, b"", None), Endpoint("http", "a", 80), None)
    response = UpstreamResponse(message, content, connection, request, "GET")
    try:
        check_response_framing(response.version, response.status, response.headers)
    except Fault:
        return None
    connection.take_head()
    connection.release()
    is_kept = connection.transport is not None
    kept.forget_all()
    return describe(response.to_whole(), is_kept=is_kept)


@pytest.mark.parametrize("name", PLAIN)
async def test_plain_response_is_read(name: str) -> None:
    response = read_whole_response(PLAIN[name])
    assert response is not None
    assert describe(response, is_kept=True) == await parse(PLAIN[name])


@pytest.mark.parametrize("name", LEFT_TO_THE_PARSER)
def test_anything_else_is_left_to_the_parser(name: str) -> None:
    assert read_whole_response(LEFT_TO_THE_PARSER[name]) is None


def test_head_that_was_read_before_is_read_for_another_body() -> None:
    whole_response._HEADS.clear()
    first, second = read_whole_response(OK), read_whole_response(OK[:-2] + b"ko")
    assert first is not None
    assert second is not None
    assert (first.body, second.body) == (b"ok", b"ko")
    assert first.headers is second.headers
    assert read_whole_response(OK + b"x") is None
    assert read_whole_response(OK[:-1]) is None


def test_head_with_a_part_of_its_body_has_begun() -> None:
    assert [size for size in range(len(OK) + 2) if is_begun((OK + b"x")[:size])] == [len(OK) - 2, len(OK) - 1]
    assert not is_begun(LEFT_TO_THE_PARSER["chunked"])
    assert is_begun(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MAX_WHOLE_BYTES)
    too_long = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_WHOLE_BYTES + 1)
    assert not is_begun(too_long)
    assert read_whole_response(too_long + b"x" * (MAX_WHOLE_BYTES + 1)) is None


def test_few_heads_are_remembered_and_none_that_is_long_or_sets_a_cookie() -> None:
    heads = whole_response._HEADS
    heads.clear()
    assert read_whole_response(PLAIN["repeated"]) is not None
    assert read_whole_response(OK.replace(b"Content", b"X-A: " + b"b" * 500 + b"\r\nContent")) is not None
    assert not heads
    for number in range(1000):
        assert read_whole_response(OK.replace(b"Content", b"X-A: %d\r\nContent" % number)) is not None
        assert 1 <= len(heads) <= 64


def mutated(seed: int, count: int) -> Iterator[bytes]:
    """Yield responses with up to three changes each."""
    random_ = random.Random(seed)
    for _ in range(count):
        body = random_.choice([b"", b"ok", b"\r\n\r\n", b"x" * 10])
        lines = [b"HTTP/1.1 " + random_.choice(_CODES), *random_.choices(_HEADERS, k=random_.randrange(4))]
        lines.insert(random_.randrange(1, len(lines) + 1), b"Content-Length: %d" % len(body))
        data = b"\r\n".join(lines) + b"\r\n\r\n" + body
        for _ in range(random_.randrange(4)):
            at, to = random_.randrange(len(data) + 1), random_.randrange(9)
            token = random_.choice([b"", random_.choice(_TOKENS), bytes([random_.randrange(256)])])
            data = data[:at] + token + data[at + to :]
        yield data


async def check_mutations(seed: int, count: int) -> int:
    """Compare reading with parsing on mutated responses; return how many were read."""
    read = 0
    for data in mutated(seed, count):
        response = read_whole_response(data)
        if response is not None:
            read += 1
            assert describe(response, is_kept=True) == await parse(data), data
    return read


async def test_what_is_read_the_parser_reads_in_the_same_way() -> None:
    assert await check_mutations(seed=1, count=5000) > 500


@pytest.mark.soak
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(2, 22))
async def test_what_is_read_of_millions_of_responses_the_parser_reads_in_the_same_way(seed: int) -> None:
    assert await check_mutations(seed, count=100_000) > 10_000

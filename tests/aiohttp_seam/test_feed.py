"""What is fed to aiohttp's parser in one step."""

from __future__ import annotations

import asyncio

import pytest

from gateway.aiohttp_seam import ClientConnection, ServerConnection
from gateway.aiohttp_seam.feed import BodyHead
from tests.aiohttp_seam.peers import PATIENCE_SECONDS, listen, serve

POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return what is fed to the parsers, step by step."""
    fed: list[bytes] = []
    for connection in (ServerConnection, ClientConnection):
        parse = connection.parse

        def record(self: object, data: bytes, parse: object = parse) -> BodyHead | None:
            fed.append(data)
            return parse(self, data)  # type: ignore[operator, no-any-return]  # one of two methods

        monkeypatch.setattr(connection, "parse", record)
    return fed


@pytest.mark.parametrize("length", [b"content-LENGTH:\t5 ", b"Content-Length: 7"])
async def test_request_and_what_came_of_its_body_are_one_step(steps: list[bytes], length: bytes) -> None:
    received = POST + length + b"\r\n\r\nhello"
    async with serve() as serving:
        await serving.send(received)
        request = await serving.request()
        assert steps == [received]
        assert await request.content.readany() == b"hello"
        assert request.content.is_eof() == (b"5" in length)
        if not request.content.is_eof():
            await serving.send(b"ab")
            assert await asyncio.wait_for(request.content.readany(), PATIENCE_SECONDS) == b"ab"
            assert request.content.is_eof()
        serving.finish.set()


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (POST + b"Content-Length: 2\r\n\r\n", b"abGET /next HTTP/1.1\r\nHost: a\r\n\r\n"),
        (POST + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\n", b"abcd"),
        (POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n"),
        (POST + b"X: 1\r\n Content-Length: 9\r\n\r\n", b"abcd"),
        (POST + b"Content-Length: +4\r\n\r\n", b"abcd"),
        (POST + b"X-Content-Length: 4\r\n\r\n", b"abcd"),
        (POST + b"Content-Length: 4\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", b"abcd"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n", b"abcd"),
    ],
)
async def test_request_whose_length_is_in_doubt_is_fed_up_to_its_blank_line(
    steps: list[bytes], head: bytes, rest: bytes
) -> None:
    async with serve() as serving:
        serving.finish.set()
        serving.connection.data_received(head + rest)
        assert steps[0] == head


async def test_response_and_its_body_are_one_step(steps: list[bytes]) -> None:
    response = OK + b"Content-Length: 5\r\n\r\nhello"
    async with listen() as upstream:
        protocol = await upstream.connect()
        with upstream.accept():
            protocol.data_received(response)
            message, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
            assert (message.code, await body.read()) == (200, b"hello")
            assert steps == [response]
            protocol.drop()


@pytest.mark.parametrize(
    ("head", "is_head"),
    [
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", False),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", False),
        (b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\n", False),
        (OK + b"Content-Length: 5\r\n\r\n", True),
        (OK + b"Content-Length: 4\r\n\r\n", False),
        (OK + b"Content-Length: 5\r\nTransfer-Encoding : chunked\r\n\r\n", False),
        (OK + b"\r\n", False),
    ],
)
async def test_response_whose_length_is_in_doubt_is_fed_up_to_its_blank_line(
    steps: list[bytes], head: bytes, *, is_head: bool
) -> None:
    async with listen() as upstream:
        protocol = await upstream.connect(may_have_body=not is_head)
        with upstream.accept():
            protocol.data_received(head + b"hello")
            assert steps[0] == head
            protocol.drop()

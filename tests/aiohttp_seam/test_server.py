"""aiohttp's server protocol with its gaps closed."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.http_writer import StreamWriter

from gateway.aiohttp_seam import PausableStream
from tests.aiohttp_seam.peers import PATIENCE_SECONDS, reset, serve, settle
from tests.peers import wait_until

HEAD = b"POST /a%2Fb? HTTP/1.1\r\nHost: a\r\nX-y: \xff\r\nx-Y: 2\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


async def test_public_names_give_the_head_as_received_and_the_writer() -> None:
    async with serve() as serving:
        await serving.send(HEAD + b"\r\n")
        request = await serving.request()
        assert request.raw_path == "/a%2Fb?"
        assert request.raw_headers == ((b"Host", b"a"), (b"X-y", b"\xff"), (b"x-Y", b"2"))
        assert isinstance(request.writer, StreamWriter)


async def test_connection_is_idle_but_while_a_request_is_handled() -> None:
    async with serve() as serving:
        assert serving.connection.is_idle
        await serving.send(HEAD + b"\r\n")
        await serving.request()
        assert not serving.connection.is_idle
        serving.finish.set()
        await wait_until(lambda: serving.connection.is_idle)


async def test_broken_chunk_raises_in_the_read_that_waits() -> None:
    async with serve() as serving:
        await serving.send(HEAD + CHUNKED + b"3\r\nabc\r\n")
        request = await serving.request()
        await request.content.readany()
        reading = asyncio.ensure_future(request.content.readany())
        await settle()
        await serving.send(b"zz\r\n")
        with pytest.raises(Exception, match="chunk"):
            await asyncio.wait_for(reading, PATIENCE_SECONDS)


@pytest.mark.parametrize("cut", [0, 1, 3, 8, 9, 12])
async def test_rest_of_a_chunked_body_is_received_past_the_parser_from_wherever_it_stopped(cut: int) -> None:
    body = b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
    async with serve() as serving:
        await serving.send(HEAD + CHUNKED + body[:cut])
        request = await serving.request()
        decoder = serving.connection.decoder
        assert decoder is not None
        assert decoder.decoded_bytes == request.content.total_bytes
        stream = PausableStream(serving.connection, request.content)
        assert stream.pause()
        taken = b""
        while stream.fetch_buffered():
            taken += await request.content.readany()
        serving.connection.bypass_parser()
        stream.resume()
        await serving.send(body[cut:])
        while chunk := await asyncio.wait_for(request.content.readany(), PATIENCE_SECONDS):
            taken += chunk
        assert taken == b"abcdefg"


async def test_broken_chunk_past_the_parser_is_set_on_the_body() -> None:
    async with serve() as serving:
        await serving.send(HEAD + CHUNKED + b"3\r\nabc\r\n")
        request = await serving.request()
        await request.content.readany()
        serving.connection.bypass_parser()
        await serving.send(b"zz\r\n")
        with pytest.raises(Exception, match="chunk"):
            await asyncio.wait_for(request.content.readany(), PATIENCE_SECONDS)


async def test_body_of_known_length_has_no_decoder() -> None:
    async with serve() as serving:
        await serving.send(HEAD + b"Content-Length: 3\r\n\r\na")
        await serving.request()
        assert serving.connection.decoder is None


async def test_reset_is_recorded_and_an_orderly_close_is_not() -> None:
    for is_reset in (True, False):
        async with serve() as serving:
            await serving.send(HEAD + b"\r\n")
            await serving.request()
            if is_reset:
                reset(serving.peer)
            else:
                serving.peer.close()
            await wait_until(lambda: serving.connection.transport is None)
            assert serving.connection.was_broken == is_reset

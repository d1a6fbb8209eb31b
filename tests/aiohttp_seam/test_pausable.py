"""PausableStream: each row of its lifecycle table."""

from __future__ import annotations

import asyncio
import os

import pytest

from gateway.aiohttp_seam import PausableStream, has_buffered, is_plain_tcp, is_reading_paused
from tests.aiohttp_seam.peers import PATIENCE_SECONDS, Received, Serving, reset, serve, settle

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
CHUNKED_HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


async def begin(serving: Serving, data: bytes) -> tuple[Received, PausableStream]:
    await serving.send(data)
    request = await serving.request()
    return request, PausableStream(serving.connection, request.content)


async def test_paused_connection_receives_nothing_also_after_a_read_and_goes_on_when_resumed() -> None:
    async with serve() as serving:
        request, stream = await begin(serving, HEAD + b"abc")
        assert stream.pause()
        assert await request.content.readany() == b"abc"
        await serving.send(b"def")
        await settle()
        assert request.content.total_bytes == 3
        stream.resume()
        assert await asyncio.wait_for(request.content.readany(), PATIENCE_SECONDS) == b"def"


async def test_buffered_data_is_found_until_it_was_read() -> None:
    async with serve() as serving:
        request, stream = await begin(serving, HEAD + b"abc")
        assert stream.pause()
        assert has_buffered(request.content)
        assert stream.fetch_buffered()
        await request.content.readany()
        assert not has_buffered(request.content)
        assert not stream.fetch_buffered()


async def test_data_kept_undecoded_while_paused_is_fetched_before_the_socket_is_read() -> None:
    async with serve() as serving:
        request, stream = await begin(serving, CHUNKED_HEAD)
        serving.connection.pause_reading()
        assert is_reading_paused(serving.connection)
        serving.connection.data_received(b"3\r\nabc\r\n3\r\ndef\r\n")
        assert request.content.total_bytes == 0
        assert stream.pause()
        taken = b""
        while stream.fetch_buffered():
            taken += await request.content.readany()
        assert taken == b"abcdef"
        assert not is_reading_paused(serving.connection)


async def test_flow_control_is_resumed_by_fetching_but_the_transport_is_not() -> None:
    async with serve() as serving:
        _, stream = await begin(serving, HEAD)
        assert stream.pause()
        serving.connection.pause_reading()
        assert not stream.fetch_buffered()
        assert not is_reading_paused(serving.connection)
        transport = stream.take_transport()
        assert transport is not None
        assert not transport.is_reading()


async def test_resume_leaves_a_connection_that_flow_control_has_paused() -> None:
    async with serve() as serving:
        _, stream = await begin(serving, HEAD)
        assert stream.pause()
        serving.connection.pause_reading()
        stream.resume()
        transport = serving.connection.transport
        assert transport is not None
        assert not transport.is_reading()


async def test_error_on_the_body_counts_as_buffered_so_that_a_read_raises_it() -> None:
    async with serve() as serving:
        request, stream = await begin(serving, HEAD)
        assert stream.pause()
        request.content.set_exception(ValueError("broken"))
        assert stream.fetch_buffered()
        with pytest.raises(ValueError, match="broken"):
            await request.content.readany()


async def test_socket_of_a_detached_connection_has_what_was_not_received() -> None:
    async with serve() as serving:
        request, stream = await begin(serving, HEAD + b"abc")
        assert stream.pause()
        while stream.fetch_buffered():
            await request.content.readany()
        await serving.send(b"defghi")
        transport = stream.take_transport()
        assert is_plain_tcp(transport)
        assert transport is not None
        assert os.read(transport.get_extra_info("socket").fileno(), 100) == b"defghi"
        stream.resume()


async def test_body_that_has_ended_cannot_be_paused() -> None:
    async with serve() as serving:
        _, stream = await begin(serving, HEAD + b"abcdefghi")
        assert not stream.pause()


async def test_lost_connection_can_be_resumed_but_not_detached_or_paused() -> None:
    async with serve() as serving:
        _, stream = await begin(serving, HEAD)
        assert stream.pause()
        reset(serving.peer)
        transport = serving.connection.transport
        assert transport is not None
        transport.abort()
        await settle()
        assert stream.take_transport() is None
        stream.resume()
        assert not stream.pause()

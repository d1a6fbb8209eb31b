"""aiohttp's server protocol with its gaps closed."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from gateway.aiohttp_seam import PausableStream
from gateway.http.chunked import STEP_WORK
from gateway.transfer import Turns as LoopTurns
from tests.aiohttp_seam.peers import PATIENCE_SECONDS, OneByOne, reset, serve, settle
from tests.certificates import Certificate
from tests.peers import wait_until

HEAD = b"POST /a%2Fb? HTTP/1.1\r\nHost: a\r\nX-y: \xff\r\nx-Y: 2\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


async def test_head_is_given_as_received() -> None:
    async with serve() as serving:
        await serving.send(HEAD + b"\r\n")
        request = await serving.request()
        assert request.message.path == "/a%2Fb?"
        assert request.message.raw_headers == ((b"Host", b"a"), (b"X-y", b"\xff"), (b"x-Y", b"2"))


async def test_connection_waits_but_while_a_request_is_received_or_handled() -> None:
    async with serve() as serving:
        await wait_until(lambda: serving.connection.is_waiting)
        assert not serving.connection.is_kept
        await serving.send(HEAD)
        assert not serving.connection.is_waiting  # the kernel has it
        await wait_until(lambda: serving.connection.is_waiting)
        assert not serving.connection.is_kept
        await serving.send(b"\r\n")
        await serving.request()
        assert not serving.connection.is_waiting
        serving.finish.set()
        await wait_until(lambda: serving.connection.is_waiting)
        assert serving.connection.is_kept
        await serving.send(HEAD[:3])
        await wait_until(lambda: not serving.connection.is_kept)


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


@pytest.mark.parametrize("middle", [13, 19, 23])
@pytest.mark.parametrize("cut", [0, 1, 3, 8, 9, 12])
async def test_rest_of_a_chunked_body_is_decoded_from_wherever_its_decoder_stopped(cut: int, middle: int) -> None:
    body = b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
    async with serve() as serving:
        await serving.send(HEAD + CHUNKED + body[:cut])
        request = await serving.request()
        stream = PausableStream(serving.connection, request.content)
        assert stream.pause()
        taken = b""
        while stream.fetch_buffered():
            taken += await request.content.readany()
        decoder = serving.connection.take_decoder()
        assert decoder is not None
        assert decoder.decoded_bytes == request.content.total_bytes
        taken += decoder.decode(body[cut:middle])
        stream.resume()
        serving.connection.give_back_decoder()
        await serving.send(body[max(cut, middle) :])
        while chunk := await asyncio.wait_for(request.content.readany(), PATIENCE_SECONDS):
            taken += chunk
        assert taken == b"abcdefg"


NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
async def test_messages_are_told_apart_however_they_are_received(size: int) -> None:
    """Trailers do not reach the next request, as they do with aiohttp's own parser."""
    chunked_body = b"3;a=b\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n"
    wire = HEAD + CHUNKED + chunked_body + HEAD + b"Content-Length: 6\r\n\r\n\r\n\r\n\r\n" + NEXT
    # A clock that stands still: all of it is parsed at once, also on a loaded machine, so before a handler has ended.
    async with serve(LoopTurns(lambda: 0.0)) as serving:
        serving.finish.set()
        for at in range(0, len(wire), size):
            serving.connection.data_received(wire[at : at + size])
        requests = [await serving.request() for _ in range(3)]
        assert [request.message.method for request in requests] == ["POST", "POST", "GET"]
        assert [request.content.total_bytes for request in requests] == [3, 6, 0]
        assert requests[1].message.raw_headers[0] == (b"Host", b"a")


async def test_chunked_body_is_decoded_in_steps_between_which_others_have_turns() -> None:
    turns = OneByOne()
    async with serve(turns) as serving:
        serving.connection.data_received(HEAD + CHUNKED + b"1\r\nx\r\n2\r\nyz\r\n" * STEP_WORK)
        content = serving.connection._messages[-1][1]
        seen = [content.total_bytes]
        while turns.steps:
            turns.steps.popleft()()
            seen.append(content.total_bytes)
        assert seen[-1] == 3 * STEP_WORK
        assert max(after - before for before, after in pairwise([0, *seen])) <= STEP_WORK


async def test_pipelined_heads_are_parsed_one_per_turn() -> None:
    turns = OneByOne()
    async with serve(turns) as serving:
        serving.connection.data_received(NEXT * 10)
        assert len(serving.connection._messages) == 1
        turns.steps.popleft()()
        assert len(serving.connection._messages) == 2


async def test_few_pipelined_requests_are_parsed_ahead_of_the_one_that_is_handled_and_all_in_the_end() -> None:
    """aiohttp parses 20, which held 2 MiB of small bodies."""
    async with serve() as serving:
        one = HEAD + b"Content-Length: 3\r\n\r\nabc"
        await serving.send(one * 50)
        await serving.request()
        await settle()
        assert len(serving.connection._messages) <= 4
        serving.finish.set()
        for _ in range(49):
            await serving.request()


async def test_body_of_known_length_has_no_decoder() -> None:
    async with serve() as serving:
        await serving.send(HEAD + b"Content-Length: 3\r\n\r\na")
        await serving.request()
        assert serving.connection.take_decoder() is None


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


async def test_client_may_leave_when_its_tls_transport_was_closed_twice(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raised AttributeError, and clients of other connections that had left were not noticed."""
    async with (
        await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=certificate.server_context()) as server,
        serve() as serving,
    ):
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=certificate.client_context())
        writer.transport.close()
        writer.transport.close()
        with monkeypatch.context() as patch:
            patch.setattr(serving.connection, "transport", writer.transport)
            serving.connection._leave(was_reset=True)


@pytest.mark.parametrize("pieces", [[b"\r", b"\n", b"\r", b"\n3\r\nok"], [b"\r\n", b"\r", b"\n3\r\nok"]])
async def test_chunked_body_begins_after_a_blank_line_that_came_byte_by_byte(pieces: list[bytes]) -> None:
    """The parser ended the head within the last piece, and was given the beginning of a body that is decoded here."""
    async with serve() as serving:
        for piece in [HEAD + CHUNKED.rstrip(), *pieces, b"x\r\n0\r\n\r\n"]:
            serving.connection.data_received(piece)
        request = await serving.request()
        assert await request.content.read() == b"okx"


async def test_connect_has_no_body_whatever_its_headers_say() -> None:
    async with serve() as serving:
        serving.connection.data_received(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n" + CHUNKED + b"2\r\nok\r\n0\r\n\r\n")
        request = await serving.request()
        assert await request.content.read() == b""


UPGRADE = b"GET /up HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_requests_after_one_to_upgrade_are_received_once_it_has_its_response(size: int) -> None:
    """It asked for another protocol and got a response of this one; what came after it is parsed as ever."""
    wire = UPGRADE + HEAD + CHUNKED + b"3\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n" + NEXT
    async with serve() as serving:
        for at in range(0, len(wire), size):
            serving.connection.data_received(wire[at : at + size])
        first = await serving.request()
        await settle()
        assert serving.requests.empty()
        serving.finish.set()
        others = [await serving.request() for _ in range(2)]
        assert [request.message.path for request in (first, *others)] == ["/up", "/a%2Fb?", "/next"]
        assert await others[0].content.readany() == b"abc"


async def test_head_that_cannot_be_read_is_refused_and_the_connection_closes() -> None:
    async with serve() as serving:
        serving.finish.set()
        await serving.send(NEXT + b"GET\r\n\r\n" + NEXT)
        await serving.request()
        await wait_until(lambda: serving.connection.transport is None)
        assert len(serving.refused) == 1
        assert serving.requests.empty()


async def test_handler_is_cancelled_and_its_body_fails_when_the_connection_is_lost() -> None:
    async with serve() as serving:
        await serving.send(HEAD + b"Content-Length: 3\r\n\r\na")
        request = await serving.request()
        reset(serving.peer)
        await wait_until(lambda: serving.connection.transport is None)
        with pytest.raises(ConnectionError):
            await request.content.readany()
        await wait_until(lambda: not serving.connection._request_in_progress)

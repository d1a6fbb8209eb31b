"""aiohttp's client protocol and pool with their gaps closed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from itertools import pairwise

import aiohttp
import pytest

from gateway.aiohttp_seam import ClientConnection, KeptConnections, PausableStream, detach_parser, is_reading_paused
from gateway.aiohttp_seam.client import MAX_INTERIM_RESPONSES
from gateway.errors import Fault
from gateway.http.chunked import STEP_WORK
from tests.aiohttp_seam.peers import (
    KEPT_SECONDS,
    PATIENCE_SECONDS,
    Listening,
    OneByOne,
    Upstream,
    listen,
    reset,
    settle,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def exchange(upstream: Upstream) -> ClientConnection:
    """Open a connection, receive a response, and give it back to the pool."""
    protocol = await upstream.connect()
    peer = upstream.accept()
    peer.sendall(OK)
    _, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
    assert await body.readany() == b"ok"
    protocol.release()
    protocol.peer = peer  # type: ignore[attr-defined]  # kept with it
    return protocol


async def test_kept_connection_is_used_again() -> None:
    async with listen() as upstream:
        protocol = await exchange(upstream)
        connection = await upstream.connect()
        assert connection is protocol
        connection.drop()
        protocol.peer.close()  # type: ignore[attr-defined]  # kept with it


@pytest.mark.parametrize("news", ["close", "reset", "bytes"])
async def test_kept_connection_with_input_is_not_used_again(news: str) -> None:
    async with listen() as upstream:
        protocol = await exchange(upstream)
        peer = protocol.peer  # type: ignore[attr-defined]  # kept with it
        with contextlib.closing(peer):
            if news == "close":
                peer.close()
            elif news == "reset":
                reset(peer)
            else:
                peer.sendall(b"x")
            # The loop has not run since: only the kernel has seen it.
            connection = await upstream.connect()
            assert connection is not protocol
            connection.drop()
            upstream.accept().close()


async def test_connection_is_kept_only_so_long() -> None:
    async with listen() as upstream:
        protocol = await exchange(upstream)
        protocol.kept_since -= KEPT_SECONDS
        connection = await upstream.connect()
        assert connection is not protocol
        connection.drop()
        upstream.accept().close()
        protocol.peer.close()  # type: ignore[attr-defined]  # kept with it


async def test_kept_connection_is_closed_when_its_time_is_over() -> None:
    async with listen() as upstream:
        kept = KeptConnections(0.01)
        protocol = await upstream.connect()
        protocol.join(kept, set())
        with contextlib.closing(upstream.accept()) as peer:
            protocol.release()
            assert await asyncio.get_running_loop().sock_recv(nonblocking(peer), 1) == b""
        assert kept.take() is None


async def test_connections_kept_with_one_that_failed_are_closed() -> None:
    async with listen() as upstream:
        one, other = await upstream.connect(), await upstream.connect()
        with contextlib.closing(upstream.accept()), contextlib.closing(upstream.accept()):
            one.release()
            failed = await upstream.connect()
            assert failed is one
            other.release()
            failed.drop()
            new = await upstream.connector.take(upstream.address, PATIENCE_SECONDS, must_be_new=True)
            assert new not in (one, other)
            assert other.transport is None
            new.drop()
            upstream.accept().close()


async def test_close_of_the_connector_closes_connections_that_are_kept_or_in_use() -> None:
    async with listen() as upstream:
        kept, used = await upstream.connect(), await upstream.connect()
        with contextlib.closing(upstream.accept()) as one, contextlib.closing(upstream.accept()) as other:
            kept.release()
            await upstream.connector.close()
            for peer in (one, other):
                assert await asyncio.get_running_loop().sock_recv(nonblocking(peer), 1) == b""
            used.release()
            assert used.transport is None
            with pytest.raises(aiohttp.ClientConnectionError):
                await upstream.connect()
            upstream.accept().close()


def nonblocking(peer: socket.socket) -> socket.socket:
    peer.setblocking(False)
    return peer


#: Response, whether it is one to HEAD, and its body.
RESPONSES = [
    (OK, False, b"ok"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Trailer: 1\r\n\r\n", False, b"ok"),
    (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, False, b"ok"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", False, b""),
    (b"HTTP/1.1 204 No Content\r\n\r\n", False, b""),
    (b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", False, b""),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", True, b""),
    (b"HTTP/1.1 404 Not Found\r\nContent-Length: 40\r\n\r\n" + b"x" * 40, False, b"x" * 40),
]


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("seed", range(4))
async def test_responses_of_a_kept_connection_are_read_one_after_another(seed: int, size: int) -> None:
    """They have one parser, except for those that follow a response to HEAD, and that itself."""
    order = random.Random(seed)
    parsers = set()
    async with listen() as upstream:
        protocol = await exchange(upstream)
        with contextlib.closing(protocol.peer) as peer:  # type: ignore[attr-defined]  # kept with it
            for response, is_head, expected in order.choices(RESPONSES, k=30):
                assert await upstream.connect(may_have_body=not is_head) is protocol
                parsers.add(protocol._parser)
                for at in range(0, len(response), size):
                    peer.sendall(response[at : at + size])
                    await settle()
                message, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
                if message.code == 103:
                    message, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
                assert b"%d" % message.code in response
                assert await body.read() == expected
                protocol.release()
    assert 1 <= len(parsers) < 20


async def test_connection_with_a_part_of_another_response_is_not_used_again() -> None:
    """The next response would have been read after it."""
    async with listen() as upstream:
        protocol = await upstream.connect()
        with upstream.accept() as peer:
            peer.sendall(OK + b"HTTP/1.1 2")
            _, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
            assert await body.readany() == b"ok"
            protocol.release()
            again = await upstream.connect()
            assert again is not protocol
            again.drop()
            upstream.accept().close()


@pytest.mark.parametrize("news", ["response", "close", "reset", "bytes", "exception"])
async def test_listener_is_called_whatever_comes(news: str) -> None:
    async with listen() as upstream:
        protocol = await upstream.connect()
        listening = Listening()
        protocol.listener = listening
        with contextlib.closing(upstream.accept()) as peer:
            if news == "close":
                peer.close()
            elif news == "reset":
                reset(peer)
            elif news == "exception":
                protocol.set_exception(aiohttp.SocketTimeoutError("too late"))
                assert not listening.has_come.is_set(), "within a call of what may be listened to"
            else:
                peer.sendall(OK if news == "response" else b"x" * 100)
            await asyncio.wait_for(listening.has_come.wait(), PATIENCE_SECONDS)
            if news == "response":
                assert protocol.received_head is not None
                message, body = protocol.received_head
                protocol.take_head()
                assert (message.code, await body.readany()) == (200, b"ok")
                assert not protocol._buffer
            else:
                assert protocol.exception() is not None
            protocol.drop()


@pytest.mark.parametrize("takes_whole", [True, False], ids=["taken", "parsed"])
async def test_response_that_came_whole_is_offered_before_it_is_parsed(takes_whole: bool) -> None:
    async with listen() as upstream:
        protocol = await exchange(upstream)
        with contextlib.closing(protocol.peer) as peer:  # type: ignore[attr-defined]  # kept with it
            for _ in range(3):
                assert upstream.address.kept.take() is protocol
                listening = Listening(takes_whole=takes_whole)
                protocol.send_whole(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                protocol.listener = listening
                assert peer.recv(100).startswith(b"GET")
                assert not protocol.has_received
                peer.sendall(OK)
                await asyncio.wait_for(listening.has_come.wait(), PATIENCE_SECONDS)
                assert protocol.has_received
                if takes_whole:
                    assert listening.whole is not None
                    assert (listening.whole.status, listening.whole.body) == (200, b"ok")
                else:
                    message, body = await protocol.read()
                    assert (message.code, await body.readany()) == (200, b"ok")
                protocol.listener = None
                protocol.release()


PARTS = (OK[:-2], OK[-2:-1], OK[-1:])


@pytest.mark.parametrize("news", ["whole", "more", "close", "reset", "no listener"])
async def test_part_of_a_plain_response_is_kept_until_it_is_whole_or_has_to_be_parsed(news: str) -> None:
    async with listen() as upstream:
        protocol = await exchange(upstream)
        with contextlib.closing(protocol.peer) as peer:  # type: ignore[attr-defined]  # kept with it
            assert upstream.address.kept.take() is protocol
            listening = Listening()
            protocol.send_whole(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            protocol.listener = listening
            assert peer.recv(100)
            for part in PARTS[:2]:
                peer.sendall(part)
                await settle()
                assert protocol.received_head is None
                assert protocol.has_received
            if news == "no listener":
                protocol.stop_listening()
                message, body = await protocol.read()
                assert (message.code, await body.readany()) == (200, b"o")
                peer.sendall(PARTS[2])
                assert await body.read() == b"k"
                protocol.release()
                return
            if news == "close":
                peer.close()
            elif news == "reset":
                reset(peer)
            else:
                peer.sendall(PARTS[2] if news == "whole" else PARTS[2] + b"x")
            await asyncio.wait_for(listening.has_come.wait(), PATIENCE_SECONDS)
            if news == "whole":
                assert listening.whole is not None
                assert listening.whole.body == b"ok"
                protocol.release()
                assert upstream.address.kept.take() is protocol
            else:
                assert listening.whole is None
                _, body = await protocol.read()
                assert body.is_eof() == (news == "more")
                assert (body.exception() is None) == (news == "more")
                assert protocol.should_close
            protocol.drop()


@pytest.mark.parametrize("ending", ["close", "reset", "nothing"])
async def test_response_to_a_whole_request_is_awaited_by_a_task_where_nobody_listens_any_more(ending: str) -> None:
    async with listen() as upstream:
        protocol = await exchange(upstream)
        with contextlib.closing(protocol.peer) as peer:  # type: ignore[attr-defined]  # kept with it
            assert upstream.address.kept.take() is protocol
            protocol.send_whole(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            protocol.listener = Listening()
            protocol.listener = None
            if ending == "nothing":
                peer.sendall(OK)
                message, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
                assert (message.code, await body.readany()) == (200, b"ok")
                protocol.release()
                return
            if ending == "close":
                assert peer.recv(100)
                peer.close()
            else:
                reset(peer)
            with pytest.raises(aiohttp.ClientConnectionError):
                await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
            assert not protocol.has_received
            protocol.drop()


async def test_new_connection_may_have_input_already() -> None:
    """A server may speak first, and TLS servers send session tickets: only kept connections are checked."""
    async with listen() as upstream:
        connection = await upstream.connect()
        with upstream.accept() as peer:
            peer.sendall(OK)
            message, _ = await asyncio.wait_for(connection.read(), PATIENCE_SECONDS)
            assert message.code == 200
            connection.drop()


async def test_one_pool_request_finds_the_connections_of_its_endpoint_only() -> None:
    async with listen() as one, listen() as other:
        assert one.address.connection_key == one.address.connection_key
        assert one.address.connection_key.port != other.address.connection_key.port
        protocol = await exchange(one)
        connection = await one.connector.take(other.address, PATIENCE_SECONDS)
        assert connection is not protocol
        connection.drop()
        other.accept().close()
        protocol.peer.close()  # type: ignore[attr-defined]  # kept with it


async def test_response_read_below_its_transport_ends_and_its_connection_is_kept() -> None:
    async with listen() as upstream:
        protocol = await upstream.connect()
        with upstream.accept() as peer:
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")
            _, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
            stream = PausableStream(protocol, body)
            assert stream.pause()
            assert stream.fetch_buffered()
            assert await body.readany() == b"ab"
            peer.sendall(b"cde")
            await settle()
            assert not stream.fetch_buffered()
            transport = stream.take_transport()
            assert transport is not None
            sock = transport.get_extra_info("socket").dup()
            with sock:
                assert sock.recv(10) == b"cde"
            assert protocol.should_close
            detach_parser(protocol, body)
            stream.resume()
            assert body.at_eof()
            assert not protocol.should_close
            protocol.release()
            assert await upstream.connect() is protocol
            peer.sendall(OK)
            _, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
            assert await body.readany() == b"ok"
            protocol.drop()


async def test_head_that_only_the_lenient_parser_accepts_is_refused() -> None:
    async with listen() as upstream:
        protocol = await upstream.connect()
        with upstream.accept() as peer:
            peer.sendall(b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok")
            message, _ = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
            assert message.code == 103
            with pytest.raises(Fault, match="Line 2"):
                await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
            assert protocol.should_close
            protocol.drop()


async def test_broken_chunk_is_set_on_the_body() -> None:
    async with listen() as upstream:
        protocol = await upstream.connect()
        with upstream.accept() as peer:
            peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            _, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
            assert await body.readany() == b"abc"
            peer.sendall(b"zz\r\n")
            with pytest.raises((aiohttp.ClientPayloadError, aiohttp.http.HttpProcessingError)):
                await asyncio.wait_for(body.readany(), PATIENCE_SECONDS)
            protocol.drop()


async def test_reset_in_a_body_that_only_the_close_ends_is_an_error_after_what_had_arrived() -> None:
    async with listen() as upstream:
        protocol = await upstream.connect()
        peer = upstream.accept()
        peer.sendall(b"HTTP/1.1 200 OK\r\n\r\nabc")
        _, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
        assert await body.readany() == b"abc"
        reset(peer)
        with pytest.raises(aiohttp.ClientPayloadError):
            await asyncio.wait_for(body.readany(), PATIENCE_SECONDS)
        protocol.drop()


async def test_response_that_arrived_before_the_connection_broke_is_read() -> None:
    """asyncio's send meets the broken connection first; the response is still in the socket."""
    async with listen() as upstream:
        protocol = await upstream.connect()
        with upstream.accept() as peer:
            peer.sendall(OK)
            protocol.connection_lost(ConnectionResetError("send failed"))
            message, _ = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
            assert message.code == 200
            protocol.drop()


async def test_unread_body_pauses_its_connection() -> None:
    async with listen() as upstream:
        protocol = await upstream.connect()
        with upstream.accept() as peer:
            peer.setblocking(False)
            sending = asyncio.ensure_future(
                asyncio.get_running_loop().sock_sendall(
                    peer, b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + bytes(2000000)
                )
            )
            _, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not is_reading_paused(protocol):  # noqa: ASYNC110 (aiohttp has no event for it)
                    await asyncio.sleep(0)
            while not body.is_eof():
                await asyncio.wait_for(body.readany(), PATIENCE_SECONDS)
            await sending
            assert not is_reading_paused(protocol)
            protocol.drop()


async def test_reset_met_below_the_transport_is_set_on_a_body_that_only_the_close_ends() -> None:
    """Sending below the transport consumes the socket's error: the transport reads a clean end after it."""
    async with listen() as upstream:
        protocol = await upstream.connect()
        peer = upstream.accept()
        peer.sendall(b"HTTP/1.1 200 OK\r\n\r\nthe beginning")
        _, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
        protocol.record_reset(ConnectionResetError())
        peer.close()
        with pytest.raises(aiohttp.ClientPayloadError):
            await asyncio.wait_for(body.read(), PATIENCE_SECONDS)
        protocol.drop()


async def test_chunked_response_is_decoded_in_steps_between_which_others_have_turns() -> None:
    """aiohttp calls Python for every chunk: a receive full of one-byte chunks stopped the event loop."""
    turns = OneByOne()
    async with listen(turns) as upstream:
        protocol = await upstream.connect()
        with upstream.accept():
            protocol.data_received(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                + b"1\r\nx\r\n2\r\nyz\r\n" * STEP_WORK
                + b"0\r\nTrailer: x\r\n\r\n"
            )
            _, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
            seen = [body.total_bytes]
            while turns.steps:
                turns.steps.popleft()()
                seen.append(body.total_bytes)
            assert max(after - before for before, after in pairwise([0, *seen])) <= STEP_WORK
            assert len(await body.read()) == 3 * STEP_WORK
            assert not protocol.should_close
            protocol.drop()


async def test_interim_responses_are_parsed_one_per_turn_and_bounded() -> None:
    turns = OneByOne()
    async with listen(turns) as upstream:
        protocol = await upstream.connect()
        with upstream.accept():
            protocol.data_received(b"HTTP/1.1 102 Processing\r\n\r\n" * 2 * MAX_INTERIM_RESPONSES)
            assert len(protocol) == 1
            count = 0
            while turns.steps:
                turns.steps.popleft()()
                assert len(protocol) - count <= 1 + 1
                count = len(protocol)
            for _ in range(count):
                message, _ = await protocol.read()
                assert message.code == 102
            assert count == MAX_INTERIM_RESPONSES
            with pytest.raises(Fault, match="1xx"):
                await protocol.read()
            protocol.drop()


async def test_what_waits_for_a_turn_is_read_when_the_connection_is_lost() -> None:
    turns = OneByOne()
    async with listen(turns) as upstream:
        protocol = await upstream.connect()
        with upstream.accept() as peer:
            protocol.data_received(b"HTTP/1.1 102 Processing\r\n\r\n" * 2)
            peer.sendall(OK)
            transport = protocol.transport
            assert transport is not None
            protocol.connection_lost(ConnectionResetError("send failed"))
            codes = [(await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS))[0].code for _ in range(3)]
            assert codes == [102, 102, 200]
            protocol.drop()
            transport.abort()


async def test_kept_connection_does_not_wait_for_a_turn_of_the_response_before() -> None:
    turns = OneByOne()
    async with listen(turns) as upstream:
        protocol = await upstream.connect()
        with upstream.accept():
            for _ in range(2):
                protocol.expect_response(may_have_body=True)
                protocol.data_received(OK)
                message, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
                assert (message.code, await body.read()) == (200, b"ok")
                assert not turns.steps
            protocol.drop()


async def test_body_of_known_length_is_received_in_turns() -> None:
    turns = OneByOne()
    async with listen(turns) as upstream:
        protocol = await upstream.connect()
        with upstream.accept():
            protocol.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
            _, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
            transport = protocol.transport
            assert transport is not None
            assert not transport.is_reading()
            turns.steps.popleft()()
            assert transport.is_reading()
            protocol.data_received(b"defghi")
            assert (await body.read(), list(turns.steps)) == (b"abcdefghi", [])
            protocol.drop()


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_status_without_a_body_has_none_whatever_its_headers_say(status: bytes) -> None:
    """The connection ends, since what follows is not a response."""
    async with listen() as upstream:
        protocol = await upstream.connect()
        with upstream.accept() as peer:
            peer.sendall(b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            _, body = await asyncio.wait_for(protocol.read(), PATIENCE_SECONDS)
            assert await body.read() == b""
            assert protocol.should_close
            protocol.drop()

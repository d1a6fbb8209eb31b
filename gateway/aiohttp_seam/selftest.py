"""Start-up self-test: does the installed aiohttp have what the gateway uses of it, and does it behave as verified?

A missing private name would show only later, with the first large body say, as an error or a hanging connection.
`check_names` needs no event loop; `check_behaviour` uses real connections over loopback and takes a few milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import ssl
from asyncio import selector_events, sslproto
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import aiohttp.http_parser
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.http_writer import StreamWriter
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler
from yarl import URL

from gateway.aiohttp_seam.certificates import client_context
from gateway.aiohttp_seam.client import ClientConnection, detach_parser
from gateway.aiohttp_seam.connector import LiveConnector, PoolRequest
from gateway.aiohttp_seam.loopback import RECEIVE_BYTES, NoLimit, Received, listening, serving_one, tcp_pair
from gateway.aiohttp_seam.pausable import PausableStream, is_reading_paused
from gateway.aiohttp_seam.server import ServerConnection
from gateway.aiohttp_seam.streams import has_buffered
from gateway.aiohttp_seam.transports import connect_accepted, is_plain_tcp, set_receive_size
from gateway.http.whole_request import WholeRequest

#: As in pyproject.toml.
SUPPORTED: Final = ">=3.14.4,<3.15"
#: Each name used of a class that aiohttp or asyncio does not document. Attributes that only instances have are looked
#: up on one (`_make_instances`) or by `check_behaviour` (TCPConnector._factory).
NAMES: Final[tuple[tuple[type, tuple[str, ...]], ...]] = (
    (selector_events._SelectorSocketTransport, ("max_size",)),  # type: ignore[attr-defined]  # typeshed leaves it out
    (asyncio.BaseEventLoop, ("_ready", "_run_once", "_scheduled", "_stopping")),
    (asyncio.Handle, ("_cancelled", "_run")),
    (asyncio.TimerHandle, ("_when",)),
    (selectors.DefaultSelector, ("_fd_to_key", "_selector")),
    (sslproto._SSLProtocolTransport, ("_ssl_protocol",)),
    (
        sslproto.SSLProtocol,
        ("_app_protocol", "_incoming", "_state", "_transport", "buffer_updated", "connection_lost", "resume_writing"),
    ),
    (sslproto.SSLProtocolState, ("DO_HANDSHAKE",)),
    (StreamReader, ("_buffer", "begin_http_chunk_receiving", "feed_data", "set_read_chunk_size")),
    (
        BaseProtocol,
        (
            "_buffer_paused",
            "_pause_reading_for_buffer",
            "_pause_transport_reading",
            "_reading_paused",
            "_resume_reading_for_buffer",
            "_resume_transport_reading",
        ),
    ),
    (
        RequestHandler,
        (
            "_close",
            "_current_request",
            "_drain_helper",
            "_drain_waiter",
            "_force_close",
            "_handler_waiter",
            "_keepalive_handle",
            "_keepalive_timeout",
            "_loop",
            "_max_msg_queue_size",
            "_message_tail",
            "_messages",
            "_msg_queue_resume_size",
            "_next_keepalive_close_time",
            "_parser",
            "_process_keepalive",
            "_request_count",
            "_request_in_progress",
            "_resume_reading_if_drained",
            "_task_handler",
            "_upgraded",
            "_waiter",
            "force_close",
            "start",
        ),
    ),
    (
        ResponseHandler,
        (
            "_buffer",
            "_exception",
            "_parser",
            "_payload",
            "_should_close",
            "closed",
            "feed_data",
            "read",
            "set_exception",
            "set_response_params",
            "should_close",
        ),
    ),
    (ClientRequest, ("connection_key",)),
    (aiohttp.TCPConnector, ("_create_connection", "_get_ssl_context")),
    (StreamWriter, ("chunked", "drain", "enable_chunking", "write", "write_eof")),
)
#: Far more than any check needs.
_TIMEOUT_SECONDS: Final = 5.0
#: What a changed name may lead to. An OSError means that there is no loopback, or no descriptor left.
_FAILURES: Final = (
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    aiohttp.ClientError,
    aiohttp.http.HttpProcessingError,
    web.RequestPayloadError,
)


def check_names() -> None:
    """Raise RuntimeError if aiohttp has no C parser or lacks a name that the gateway uses.

    The pure-Python parser is laxer than the C one in ways that let requests be smuggled.
    """
    parser: Any = aiohttp.http_parser.HttpRequestParser
    if parser.__module__ != "aiohttp._http_parser":
        raise RuntimeError(
            "aiohttp runs without its C parser: install a wheel for this platform and unset AIOHTTP_NO_EXTENSIONS"
        )
    instances = _make_instances()
    for owner, names in NAMES:
        for name in names:
            if not hasattr(owner, name) and not hasattr(instances.get(owner), name):
                raise _failure(f"{owner.__module__}.{owner.__name__}.{name} is missing")
    try:
        client_context()
    except (AttributeError, TypeError) as exc:
        raise _failure(str(exc)) from exc


def _make_instances() -> dict[type, object]:
    """Return instances of the classes of which a name may be an attribute of instances only."""
    no_loop: Any = None
    protocol = sslproto.SSLProtocol(no_loop, asyncio.Protocol(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), no_loop)
    transport = sslproto._SSLProtocolTransport(no_loop, protocol)
    # Otherwise each transport, also the protocol's own, warns that it was not closed.
    transport.abort()
    protocol.connection_lost(None)
    loop, selector = asyncio.BaseEventLoop(), selectors.DefaultSelector()
    loop.close()
    selector.close()
    return {type(each): each for each in (ResponseHandler(no_loop), protocol, transport, loop, selector)}


async def check_behaviour() -> None:
    """Raise RuntimeError if a private name does not do what the gateway uses it for; OSError without loopback."""
    checks = (_check_receive_size, _check_request, _check_chunked_request, _check_broken_chunk, _check_lost_connection)
    for check in (*checks, _check_taken, _check_client):
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                await check()
        except TimeoutError as exc:
            raise _failure(f"{check.__name__.strip('_')} did not end within {_TIMEOUT_SECONDS:g} s") from exc
        except _FAILURES as exc:
            raise _failure(f"{check.__name__.strip('_')} failed with {exc!r}") from exc


def _failure(what: str) -> RuntimeError:
    return RuntimeError(
        f"aiohttp {aiohttp.__version__} does not work with this gateway: {what}. "
        f"Install aiohttp{SUPPORTED}, the range that was verified."
    )


def _require(condition: object, promise: str) -> None:
    if not condition:
        raise _failure(f"not true: {promise}")


async def _check_receive_size() -> None:
    received: asyncio.Queue[bytes] = asyncio.Queue()

    class Recorder(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            received.put_nowait(data)

    with tcp_pair() as (ours, peer):
        transport = connect_accepted(ours, peer.getsockname(), Recorder())
        with contextlib.closing(transport):
            _require(transport.get_extra_info("peername") == peer.getsockname(), "a transport has its peer's address")
            _require(is_plain_tcp(transport), "a loopback connection is plain TCP")
            set_receive_size(transport, 3)
            peer.sendall(b"abcdef")
            _require(await received.get() == b"abc", "transport.max_size limits what is received per call")
    _require(not is_plain_tcp(transport), "a closed connection is not plain TCP")


async def _check_request() -> None:
    async with _request_under_way(b"Content-Length: 9\r\n\r\nabc") as (request, connection, peer):
        message, body = request
        _require(message.path == "/a%2Fb?", "path is the target as received")
        _require(message.raw_headers[0] == (b"X-Y", b"\xff"), "raw_headers are the headers as received")
        _require(not connection.is_waiting, "_waiter is set while a connection waits for a request, and then only")
        _require(connection.is_kept, "_request_count counts the requests of a connection")
        body.set_read_chunk_size(128)
        _require(body.get_read_buffer_limits() == (128, 256), "set_read_chunk_size sets both limits of the stream")
        _require(has_buffered(body), "StreamReader._buffer holds what was received")
        stream = PausableStream(connection, body)
        _require(stream.pause(), "the body of a plain TCP connection can be paused")
        _require(stream.fetch_buffered(), "what came before the pause is found")
        _require(await body.readany() == b"abc", "what came before the pause is read")
        _require(not stream.fetch_buffered(), "nothing is left after that was read")
        peer.sendall(b"def")
        await _let_loop_poll()
        _require(body.total_bytes == len(b"abc"), "a paused connection receives nothing, also after a read")
        _require(connection.watch, "_pause_transport_reading is called where a connection is paused")
        transport = stream.take_transport()
        _require(transport is not None, "the transport of a paused connection is returned")
        _require(_unreceived(transport) == b"def", "what was not received can be read from the socket")
        stream.resume()
        peer.sendall(b"ghi")
        _require(await body.readany() == b"ghi", "a resumed connection receives")
        _require(not connection.watch, "_resume_transport_reading is called where it is resumed")


async def _check_taken() -> None:
    taken: list[WholeRequest] = []

    def take(connection: ServerConnection, request: WholeRequest) -> bool:
        taken.append(request)
        return True

    async with serving_one(take) as (handled, connection, peer):
        peer.sendall(b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        await _let_loop_poll()
        _require(len(taken) == 1 and not connection.is_waiting, "a request can be taken before the handler is woken")
        connection.end_taken()
        _require(connection.is_waiting and connection.is_kept, "_waiter is waited for after a request that was taken")
        peer.sendall(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
        await _let_loop_poll()
        _require([each.path for each in taken] == ["/1", "/2"], "the next request can be taken after the end")
        connection.hand_over(taken[-1], "made")
        request = await handled
        _require(request.message.path == "/2", "the handler has a request that is put into _messages")
        _require(connection.take_handed_over() == "made", "it finds what was made of it")


def _unreceived(transport: asyncio.Transport | None) -> bytes:
    """Return what the peer sent that asyncio has not received."""
    if transport is None:
        return b""
    with socket.socket(fileno=socket.dup(transport.get_extra_info("socket").fileno())) as sock:
        sock.setblocking(False)
        return sock.recv(RECEIVE_BYTES)


async def _check_chunked_request() -> None:
    head = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    async with _request_under_way(head) as (request, connection, peer):
        body = request.content
        _require(await body.readany() == b"abc", "the first chunk is read")
        connection.pause_reading()
        _require(is_reading_paused(connection), "_reading_paused is set by flow control")
        connection.data_received(b"3\r\ndef\r\n")
        _require(body.total_bytes == len(b"abc"), "a paused body gets no data")
        stream = PausableStream(connection, body)
        _require(stream.pause() and stream.fetch_buffered(), "what came before the pause is fetched")
        _require(await body.readany() == b"def", "what came before the pause is read")
        connection.pause_reading()
        _require(not stream.fetch_buffered(), "nothing is left after that was read")
        _require(not is_reading_paused(connection), "flow control is resumed where the stream is empty")
        decoder = connection.take_decoder()
        if decoder is None:
            raise _failure("not true: a chunked body has a decoder")
        peer.sendall(b"6\r\njkl")
        _require(
            decoder.decode(_unreceived(stream.take_transport())) == b"jkl",
            "the socket continues where the decoder ended",
        )
        stream.resume()
        connection.give_back_decoder()
        peer.sendall(b"mno\r\n0\r\nA: b\r\n\r\n")
        _require(await body.readany() == b"mno", "what is received after that reaches the body")
        _require(await body.readany() == b"" and body.is_eof(), "its end, too")
        connection.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        _require(len(connection._messages) == 1, "aiohttp's parser is ready for the next request")


async def _check_broken_chunk() -> None:
    async with _request_under_way(b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n") as (request, _, peer):
        await request.content.readany()
        peer.sendall(b"zz\r\n")
        try:
            await request.content.readany()
        except (web.RequestPayloadError, aiohttp.http.HttpProcessingError):
            return
        raise _failure("not true: a broken chunk raises in the read of the body")


async def _check_lost_connection() -> None:
    async with _request_under_way(b"Content-Length: 9\r\n\r\nabc") as (request, _, peer):
        await request.content.readany()
        peer.close()
        try:
            await request.content.readany()
        except OSError:
            return
        raise _failure("not true: _current_request is cancelled when its connection is lost")


async def _check_client() -> None:
    with listening() as listener:
        host, port = listener.getsockname()
        url = URL.build(scheme="http", host=host, port=port)
        address = PoolRequest(url, kept_seconds=_TIMEOUT_SECONDS)
        opened: list[float] = []
        connector = LiveConnector(NoLimit(), opened.append, limit=0)
        over_tls = PoolRequest(url.with_scheme("https"), kept_seconds=_TIMEOUT_SECONDS)
        _require(connector._get_ssl_context(over_tls) is client_context(), "the context of TLS connections is known")
        try:
            first = await connector.take(address, _TIMEOUT_SECONDS)
            _require(isinstance(first, ClientConnection), "TCPConnector._factory makes the protocol of a connection")
            _require(first in connector._acquired, "BaseConnector._acquired has the connections that are open")
            peer, _ = listener.accept()
            with peer:
                await _check_response(first, peer)
                again = await connector.take(address, _TIMEOUT_SECONDS)
                _require(again is first, "a connection with a detached parser is kept and used again")
                await _check_whole_response(again, peer)
                again = await connector.take(address, _TIMEOUT_SECONDS)
                _require(again is first, "a connection is kept and used again")
                await _check_whole_response(again, peer)
            # The close is in the kernel; the transport has not seen it yet.
            other = await connector.take(address, _TIMEOUT_SECONDS)
            _require(other is not first, "a connection that the upstream closed is not used again")
            _require(len(opened) == 1 + 1, "the time of each new connection is measured")
        finally:
            await connector.close()
        _require(other.transport is None, "the end of the connector closes the connections in BaseConnector._acquired")


async def _check_response(connection: ClientConnection, peer: socket.socket) -> None:
    connection.expect_response(may_have_body=True)
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
    message, body = await connection.read()
    _require(message.code == web.HTTPOk.status_code and has_buffered(body), "a response is received with its body")
    stream = PausableStream(connection, body)
    _require(stream.pause() and stream.fetch_buffered(), "a response can be paused, and its buffered data is found")
    await body.readany()
    peer.sendall(b"def")
    await _let_loop_poll()
    _require(not stream.fetch_buffered(), "a paused response receives nothing")
    _require(_unreceived(stream.take_transport()) == b"def", "the rest of a response can be read from the socket")
    detach_parser(connection, body)
    stream.resume()
    _require(body.at_eof() and not connection.should_close, "a response whose parser was detached has ended")
    connection.release()


async def _check_whole_response(connection: ClientConnection, peer: socket.socket) -> None:
    connection.expect_response(may_have_body=True)
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
    _, body = await connection.read()
    _require(await body.readany() == b"abc" and body.at_eof(), "a parser reads one response after another")
    connection.release()


async def _let_loop_poll() -> None:
    """Let the loop look for input twice: loopback delivers at once, so what could be received then was."""
    for _ in range(3):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def _request_under_way(
    rest_of_head: bytes,
) -> AsyncIterator[tuple[Received, ServerConnection, socket.socket]]:
    """Send a request to a server on loopback, and yield it when its handler runs."""
    async with serving_one() as (handled, connection, peer):
        peer.sendall(b"POST /a%2Fb? HTTP/1.1\r\nX-Y:\xff\r\nHost: a\r\n" + rest_of_head)
        yield await handled, connection, peer

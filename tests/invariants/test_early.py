"""Early responses: the client receives a response that the upstream sends before the upload is complete."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import threading
from collections.abc import Awaitable, Callable

import pytest

from gateway.aiohttp_seam import ClientConnection, socket_of
from gateway.downstream import Exchange
from gateway.observe.stats import Direction
from gateway.transfer import Transfer
from gateway.upstream import UpstreamSink
from tests.certificates import Certificate
from tests.leaks import open_descriptors
from tests.peers import RawUpstream, Script, Wire, forward_config, run_gateway, split_response, wait_until

BLOCK = b"x" * 65536
SIZE = 20 * 2**20
HEAD = b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: %d\r\n\r\n" % SIZE
CHUNKED_HEAD = b"POST / HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"10000\r\n" + BLOCK + b"\r\n"
REFUSAL = b"HTTP/1.1 413 Too Much\r\nContent-Length: 4\r\n\r\nfull"


async def refuse_and_close(wire: Wire) -> None:
    """Read 1 %, respond, and close with unread data: the kernel sends a reset after the response."""
    await wire.read_head()
    await wire.read_exactly(SIZE // 100)
    await wire.send(REFUSAL)
    await wire.close()


async def refuse_and_read_rest(wire: Wire) -> None:
    await wire.read_head()
    await wire.read_exactly(SIZE // 100)
    await wire.send(REFUSAL)
    await wire.read_to_end()


async def refuse_at_once(wire: Wire) -> None:
    """Respond after the head, without reading the body, as for a 401."""
    await wire.read_head()
    await wire.send(REFUSAL.replace(b"413 Too Much", b"401 Who"))
    await wire.close()


@pytest.mark.new_connection(reason="descriptors are counted")
async def test_early_response_of_an_upstream_that_stopped_reading_leaves_no_connection_open() -> None:
    """The connection must be aborted. `close` waits until the write buffer is empty, so the socket would stay open."""
    stalled = asyncio.Event()

    async def refuse_and_stop_reading(wire: Wire) -> None:
        await wire.read_head()
        wire.reader._transport.pause_reading()  # type: ignore[attr-defined]  # an upstream that stops reading
        await stalled.wait()
        await wire.send(REFUSAL)
        await asyncio.Event().wait()

    async with RawUpstream(refuse_and_stop_reading) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        before = len(open_descriptors())
        client = await gateway.connect()
        sending = asyncio.create_task(client.send_all([HEAD, *[BLOCK] * (SIZE // len(BLOCK))]))
        upload = gateway.stats.routes["r"].transfers[Direction.UPLOAD]
        moved = -1
        while moved != upload.bytes_moved:
            moved = upload.bytes_moved
            # No event is set when the transfer stalls.
            await asyncio.sleep(0.05)
        stalled.set()
        assert split_response(await client.read_to_end())[0] == 413
        await sending
        await client.close()
        # Only the upstream's own socket is still open.
        await wait_until(lambda: len(open_descriptors()) == before + 1)


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("script", [refuse_and_close, refuse_and_read_rest, refuse_at_once])
async def test_early_response_reaches_a_client_that_sends_its_whole_request_first(script: Script, framing: str) -> None:
    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:

        def blocking_client() -> bytes:
            with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as sock:
                sock.sendall(HEAD if framing == "length" else CHUNKED_HEAD)
                for _ in range(SIZE // len(BLOCK)):
                    sock.sendall(BLOCK if framing == "length" else CHUNK)
                if framing == "chunked":
                    sock.sendall(b"0\r\n\r\n")
                response = b""
                while piece := sock.recv(65536):
                    response += piece
                return response

        response = await asyncio.to_thread(blocking_client)
        status, headers, body = split_response(response)
        assert status in (401, 413)
        assert body == b"full"
        assert headers["connection"] == "close"
        line = await gateway.wait_log_line()
        assert (line["upload"], line["download"], line["outcome"]) == ("early_response", "complete", "complete")
        assert line["upload_bytes"] < SIZE


async def test_early_response_before_a_reset_is_never_lost() -> None:
    """asyncio may fail on a write with the reset before it has read the response, and then drops the response.

    Upstream and client run in threads, so that the reset can arrive at any time within an iteration of the event loop.
    """
    rounds = 60

    def upstream(listener: socket.socket) -> None:
        for _ in range(rounds):
            connection, _ = listener.accept()
            with connection:
                received = 0
                while received < SIZE // 100:
                    received += len(connection.recv(65536))
                connection.sendall(REFUSAL)

    def client(port: int) -> list[int]:
        statuses = []
        for _ in range(rounds):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                sock.sendall(HEAD)
                for _ in range(SIZE // len(BLOCK)):
                    sock.sendall(BLOCK)
                statuses.append(split_response(sock.recv(65536))[0])
        return statuses

    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with run_gateway(forward_config(f"http://127.0.0.1:{listener.getsockname()[1]}")) as gateway:
            serving = asyncio.create_task(asyncio.to_thread(upstream, listener))
            assert await asyncio.to_thread(client, gateway.port) == [413] * rounds
            await serving


class BlockingUpstream:
    """An upstream for one connection that responds and resets it in one step, in which the loop does not run."""

    def __init__(self, listener: socket.socket, certificate: Certificate | None) -> None:
        self._listener = listener
        self._certificate = certificate
        self.has_head = threading.Event()
        self.has_refused = False

    def read_head(self) -> None:
        self._connection, _ = self._listener.accept()
        # Otherwise a response may wait for the acknowledgement of the session tickets of TLS, and is never sent.
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._certificate is not None:
            self._connection = self._certificate.server_context().wrap_socket(self._connection, server_side=True)
        head = b""
        while b"\r\n\r\n" not in head:
            head += self._connection.recv(1000)
        self.has_head.set()

    def refuse(self, sock: asyncio.trsock.TransportSocket) -> None:
        """Respond, and return once the reset is at the gateway's socket."""
        self.has_refused = True
        self._connection.sendall(REFUSAL)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.close()
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLHUP)
        assert poll.poll(10_000)


@pytest.mark.new_connection(reason="the upstream accepts one")
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_early_response_and_reset_that_come_just_before_a_send_are_relayed(
    scheme: str, framing: str, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS the response was lost: the send failed with the reset, and asyncio closed the socket unread."""
    transports: list[asyncio.Transport] = []
    pull, connect = Transfer.pull, UpstreamSink.connect

    def record_and_connect(sink: UpstreamSink, connection: ClientConnection, transport: asyncio.Transport) -> None:
        transports.append(transport)
        connect(sink, connection, transport)

    async def pull_and_refuse(transfer: Transfer, read: Callable[[], Awaitable[bytes]]) -> bytes:
        chunk = await pull(transfer, read)
        if upstream.has_head.is_set() and not upstream.has_refused:
            sock = socket_of(transports[0])
            assert sock is not None
            upstream.refuse(sock)
        return chunk

    monkeypatch.setattr(UpstreamSink, "connect", record_and_connect)
    monkeypatch.setattr(Transfer, "pull", pull_and_refuse)
    head, pieces = (HEAD, (b"first", b"second")) if framing == "length" else (CHUNKED_HEAD, (CHUNK, CHUNK))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = BlockingUpstream(listener, certificate if scheme == "https" else None)
        async with run_gateway(forward_config(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")) as gateway:
            client = await gateway.connect()
            reading = asyncio.ensure_future(asyncio.to_thread(upstream.read_head))
            await client.send(head + pieces[0])
            await reading
            await client.send(pieces[1])
            assert split_response(await client.read_until(b"full"))[0] == 413
            await client.close()
            line = await gateway.wait_log_line()
            assert (line["upload"], line["outcome"], line["blame"]) == ("early_response", "complete", "none")


async def test_response_during_an_upload_is_forwarded_chunk_by_chunk() -> None:
    async def echo(wire: Wire) -> None:
        await wire.read_head()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            piece = await wire.read_exactly(3)
            await wire.send(b"3\r\n" + piece + b"\r\n")
        await wire.send(b"0\r\n\r\n")

    async with RawUpstream(echo) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 9\r\n\r\n")
        await client.read_head()
        for piece in (b"abc", b"def", b"ghi"):
            await client.send(piece)
            assert await client.read_until(piece + b"\r\n") == b"3\r\n" + piece + b"\r\n"
        assert await client.read_to_end() == b"0\r\n\r\n"
        await client.close()
        line = await gateway.wait_log_line()
        assert (line["upload"], line["download"]) == ("complete", "complete")


async def test_request_body_is_discarded_for_a_limited_time_after_an_early_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.downstream.exchange.DISCARD_SECONDS", 0.2)
    async with RawUpstream(refuse_at_once) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(HEAD)
        # The client sends no more bytes and keeps its connection open: the gateway must not wait without a limit.
        assert split_response(await client.read_to_end())[0] == 401
        await wait_until(lambda: not gateway.gateway._handler.exchange_count)
        await client.close()


@pytest.mark.interpreted(reason="replaces a method of Exchange")
async def test_client_that_resets_after_an_early_response_creates_no_second_exchange(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reset reached the kernel before the transport saw it: half-closing failed and was logged as a bad request."""
    client = socket.socket()
    client.setblocking(False)
    discard_request_body = Exchange.discard_request_body

    async def reset_and_discard(exchange: Exchange) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await discard_request_body(exchange)

    monkeypatch.setattr(Exchange, "discard_request_body", reset_and_discard)
    async with RawUpstream(refuse_at_once) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", gateway.port))
        await loop.sock_sendall(client, HEAD + BLOCK)
        assert (await gateway.wait_log_line())["status"] == 401
        await wait_until(lambda: not gateway.gateway._handler.exchange_count)
    assert len(gateway.log) == 1

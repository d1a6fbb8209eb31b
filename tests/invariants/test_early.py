"""Law 5: early answers count. The client reads them, whatever it was still sending."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from gateway.downstream import Exchange
from gateway.observe.stats import Direction
from tests.leaks import open_descriptors
from tests.peers import RawUpstream, Script, Wire, forward_config, run_gateway, split_response, wait_until

BLOCK = b"x" * 65536
SIZE = 20 * 2**20
HEAD = b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: %d\r\n\r\n" % SIZE
CHUNKED_HEAD = b"POST / HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"10000\r\n" + BLOCK + b"\r\n"
REFUSAL = b"HTTP/1.1 413 Too Much\r\nContent-Length: 4\r\n\r\nfull"


async def refuse_and_close(wire: Wire) -> None:
    """Read 1 %, answer, close with the rest unread: the kernel sends a reset behind the answer."""
    await wire.read_head()
    await wire.read_exactly(SIZE // 100)
    await wire.send(REFUSAL)
    await wire.close()


async def refuse_and_read_on(wire: Wire) -> None:
    await wire.read_head()
    await wire.read_exactly(SIZE // 100)
    await wire.send(REFUSAL)
    await wire.read_to_end()


async def refuse_at_once(wire: Wire) -> None:
    """Answer on the head alone, as a 401 does."""
    await wire.read_head()
    await wire.send(REFUSAL.replace(b"413 Too Much", b"401 Who"))
    await wire.close()


async def test_early_answer_of_an_upstream_that_reads_no_more_leaves_no_connection() -> None:
    """Closing is not aborting: what waits in our buffer for a peer that does not read would keep the socket open."""
    stuck = asyncio.Event()

    async def refuse_and_hold(wire: Wire) -> None:
        await wire.read_head()
        wire.reader._transport.pause_reading()  # type: ignore[attr-defined]  # an upstream that reads no more
        await stuck.wait()
        await wire.send(REFUSAL)
        await asyncio.Event().wait()

    async with RawUpstream(refuse_and_hold) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        before = len(open_descriptors())
        client = await gateway.connect()
        sending = asyncio.create_task(client.send_all([HEAD, *[BLOCK] * (SIZE // len(BLOCK))]))
        upload = gateway.stats.routes["r"].transfers[Direction.UPLOAD]
        moved = -1
        while moved != upload.bytes_moved:
            moved = upload.bytes_moved
            # Nothing announces that bytes have ceased to move.
            await asyncio.sleep(0.05)
        stuck.set()
        assert split_response(await client.read_to_end())[0] == 413
        await sending
        await client.close()
        # Only the upstream's own end is left.
        await wait_until(lambda: len(open_descriptors()) == before + 1)


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("script", [refuse_and_close, refuse_and_read_on, refuse_at_once])
async def test_early_answer_reaches_a_client_that_writes_everything_first(script: Script, framing: str) -> None:
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


async def test_early_answer_behind_a_reset_is_never_lost() -> None:
    """asyncio's send may meet the reset before its reader sees the answer: without care most are lost that way.

    Upstream and client are threads, so that the reset arrives amid the gateway's work and not between its turns.
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


async def test_answer_that_streams_while_the_upload_runs_is_relayed_chunk_by_chunk() -> None:
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


async def test_drain_behind_an_early_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.downstream.exchange.DISCARD_SECONDS", 0.2)
    async with RawUpstream(refuse_at_once) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(HEAD)
        # The client sends nothing more and keeps its side open: the gateway must not wait for it for ever.
        assert split_response(await client.read_to_end())[0] == 401
        await asyncio.wait_for(gateway.gateway._in_flight.wait_empty(), 5)
        await client.close()


async def test_client_that_resets_behind_an_early_answer_is_no_second_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel knew of the reset before the transport did: half-closing failed, and was logged as a bad request."""
    client = socket.socket()
    client.setblocking(False)
    discard_request_body = Exchange.discard_request_body

    async def reset_and_linger(exchange: Exchange) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await discard_request_body(exchange)

    monkeypatch.setattr(Exchange, "discard_request_body", reset_and_linger)
    async with RawUpstream(refuse_at_once) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", gateway.port))
        await loop.sock_sendall(client, HEAD + BLOCK)
        assert (await gateway.wait_log_line())["status"] == 401
        await wait_until(lambda: not gateway.gateway._in_flight.in_flight)
    assert len(gateway.log) == 1

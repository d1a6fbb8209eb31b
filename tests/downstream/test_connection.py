"""A client connection before its first request, and the options of its socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket

import pytest

from gateway.aiohttp_seam.transports import has_input
from gateway.downstream import Exchange
from tests.leaks import open_descriptors
from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    Wire,
    forward_config,
    post,
    problem_of,
    read_request,
    responding,
    run_gateway,
    wait_until,
)

#: Most assert that no connection was opened.
pytestmark = pytest.mark.new_connection(reason="no connection may be opened")


async def fail_on_request(_: Wire) -> None:
    raise AssertionError("a request without a whole head reached the upstream")


@pytest.mark.parametrize("head_start", [b"", b"GET / HTTP/1.1\r\nHo"])
async def test_client_that_sends_no_whole_head_in_time_is_disconnected(
    monkeypatch: pytest.MonkeyPatch, head_start: bytes
) -> None:
    monkeypatch.setattr("gateway.downstream.connection.KEEPALIVE_SECONDS", 0.05)
    async with RawUpstream(fail_on_request) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(head_start)
        assert await client.read_to_end() == b""
        await client.close()


async def test_client_that_sends_its_head_slowly_gets_no_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.downstream.connection.KEEPALIVE_SECONDS", 0.1)
    async with RawUpstream(fail_on_request) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(b"GET / HTTP/1.1\r\nX-Slow: ")
        closed = asyncio.create_task(client.read_to_end())
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not closed.done():
                with contextlib.suppress(ConnectionError):
                    await client.send(b"a")
                await asyncio.wait([closed], timeout=0.02)
        assert await closed == b""
        await client.close()


async def test_ipv4_client_of_a_listener_on_all_ipv6_addresses_is_known_by_its_ipv4_address() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        for trusted, forwarded in ((["127.0.0.0/8"], "1.2.3.4, 127.0.0.1"), ([], "127.0.0.1")):
            config = forward_config(upstream.url, top={"listen": "[::]:0", "trusted_proxies": trusted})
            async with run_gateway(config) as gateway:
                await gateway.request(
                    b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
                )
                head = bytes(upstream.wires[-1].received)
                assert f"X-Forwarded-For: {forwarded}\r\n".encode() in head
                assert b'for=127.0.0.1;host="gw"' in head
                assert (await gateway.wait_log_line())["client"] == "127.0.0.1"


def sockets_of(*ports: int) -> list[socket.socket]:
    """Return the sockets of this process that are bound or connected to one of these ports, as new descriptors."""
    found = []
    for descriptor, target in open_descriptors():
        if not target.startswith("socket:"):
            continue
        sock = socket.socket(fileno=os.dup(descriptor))
        names = [sock.getsockname()]
        with contextlib.suppress(OSError):
            names.append(sock.getpeername())
        if any(name[1] in ports for name in names if len(name) > 1):
            found.append(sock)
        else:
            sock.close()
    return found


async def test_dead_peers_are_found_by_keepalive_and_a_zero_window_is_no_death() -> None:
    """TCP_USER_TIMEOUT reset every client that paused reading for 120 s, whatever the config said."""
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
        await client.read_until(b"ok")
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(sock) for sock in sockets_of(gateway.port, upstream.port)]
            kept = [sock for sock in sockets if sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
            # The listener, the client's and the upstream's connection; the others are the test's own ends.
            assert len(kept) == 3
            for sock in kept:
                names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
                assert [sock.getsockopt(socket.IPPROTO_TCP, name) for name in names] == [30, 10, 3, 0]
        await client.close()


@pytest.mark.parametrize("is_second", [False, True])
async def test_head_is_refused_before_it_is_complete_where_it_is_too_large(is_second: bool) -> None:
    """A hundred headers of 8 KiB each are within the parser's limits, and took 1.5 MiB of memory a connection."""
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        if is_second:
            await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
            await client.read_until(b"ok")
        await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\n")
        await client.send_all(b"X-%d: %s\r\n" % (number, b"x" * 8000) for number in range(9))
        problem = problem_of(await client.read_to_end())
        assert (problem["status"], problem["code"]) == (431, "head_too_large")
        assert len(upstream.wires) == is_second
        await client.close()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"FOO / HTTP/1.1", 501),
        (b"get / HTTP/1.1", 501),
        (b"GETX / HTTP/1.1", 501),
        (b"SETUP / HTTP/1.1", 501),
        (b"PRI * HTTP/2.0", 400),
        (b"F(O / HTTP/1.1", 400),
        (b"GET\t/ HTTP/1.1", 400),
        (b"hello", 400),
        (b"\x16\x03\x01", 400),
        (b"TRACE / HTTP/1.1", 405),
        (b"CONNECT a:1 HTTP/1.1", 405),
        (b"DELETE / HTTP/1.1", 405),
        (b"QUERY / HTTP/1.1", 405),
    ],
)
async def test_unknown_method_is_501_and_one_without_a_route_is_405(line: bytes, status: int) -> None:
    async with RawUpstream(fail_on_request) as upstream:
        config = forward_config(upstream.url, match={"prefix": "/", "methods": ["GET"]})
        async with run_gateway(config) as gateway:
            response = await gateway.request(line + b"\r\nHost: gw\r\nConnection: close\r\n\r\n")
            problem = problem_of(response)
            assert (problem["status"], problem["status"] == 405) == (status, b"\r\nAllow: " in response)
            assert b"\r\nConnection: close\r\n" in response


LENGTH = b"POST /%d HTTP/1.1\r\nHost: gw\r\nContent-Length: 2\r\n\r\nab"
CHUNKED = b"POST /%d HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
LAST = CHUNKED.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


async def test_pipelined_requests_with_bodies_are_responded_to_in_order() -> None:
    async def respond(wire: Wire) -> None:
        while True:
            head, body = await read_request(wire)
            path = head.split()[1]
            assert body == b"ab"
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(path) + path)

    async with RawUpstream(respond) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        requests = [LENGTH % 1, CHUNKED % 2, (LENGTH % 3).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)]
        response = await gateway.request(b"".join(requests))
        assert [part[-2:] for part in response.split(b"HTTP/1.1 ")[1:]] == [b"/1", b"/2", b"/3"]
        assert response.count(b"\r\nConnection: close\r\n") == 1


@pytest.mark.parametrize("size", [1000, 300_000])
async def test_connection_that_is_closed_after_a_small_response_was_announced_as_closed(size: int) -> None:
    """After a large body the close came without a word, and a client's next request was lost."""
    body = bytes(size)
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(
            (LENGTH % 1).replace(b"Content-Length: 2\r\n\r\nab", b"Content-Length: %d\r\n\r\n" % size) + body
        )
        head = await client.read_until(b"\r\n\r\nok")
        if b"\r\nConnection: close\r\n" not in head:
            await client.send(LAST % 2)
            assert (await client.read_to_end()).startswith(b"HTTP/1.1 200 OK\r\n")
        else:
            assert await client.read_to_end() == b""
        await client.close()


@pytest.mark.parametrize("later", [LENGTH % 3, (LENGTH % 3) * 20_000], ids=["received", "still sent"])
@pytest.mark.parametrize("pause", [False, True])
async def test_requests_after_the_last_response_are_dropped_and_the_close_is_clean(later: bytes, pause: bool) -> None:
    """With input unread, the kernel would reset the connection, and the client could lose the response."""
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(LENGTH % 1 + LAST % 2 + later[:100_000])
        if pause:
            await gateway.wait_log_line(2)
        sending = asyncio.create_task(client.send_all([later[100_000:]]))
        response = await client.read_to_end()
        assert not client.was_reset
        assert response.count(b"HTTP/1.1 200 OK") == 2
        assert response.endswith(b"\r\nConnection: close\r\n\r\nok")
        await sending
        await client.close()
        assert len(gateway.log) == 2
        assert sum(bytes(wire.received).count(b"POST") for wire in upstream.wires) == 2


async def test_client_that_still_sends_its_head_reads_why_it_is_refused() -> None:
    async with RawUpstream(fail_on_request) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        head = b"GET / HTTP/1.1\r\nHost: gw\r\nX-Long: " + b"x" * 4_000_000
        sending = asyncio.create_task(client.send_all([head]))
        response = await client.read_to_end()
        assert problem_of(response)["status"] == 431
        assert not client.was_reset
        await sending
        await client.close()


async def test_client_that_still_sends_a_malformed_body_reads_why_it_is_refused() -> None:
    async def read(wire: Wire) -> None:
        await wire.read_to_end()

    async with RawUpstream(read) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        head = b"POST / HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
        sending = asyncio.create_task(client.send_all([head, b"x" * 4_000_000]))
        response = await client.read_to_end()
        assert problem_of(response)["code"] == "bad_framing"
        assert not client.was_reset
        await sending
        await client.close()


async def test_exchange_that_failed_is_freed_without_the_garbage_collector() -> None:
    """Its faults referred to frames, and these to it: collecting them stopped the loop for a tenth of a second."""
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, limits={"max_body": 5})) as gateway:
            await gateway.request(post(b"too long"))
            gc.collect()
            gc.disable()
            try:
                before = sum(isinstance(each, Exchange) for each in gc.get_objects())
                assert problem_of(await gateway.request(post(b"too long")))["status"] == 413
                await wait_until(lambda: sum(isinstance(each, Exchange) for each in gc.get_objects()) == before)
            finally:
                gc.enable()


@pytest.mark.parametrize("framing", [b"Content-Length: 2", b"Transfer-Encoding: chunked"])
async def test_nothing_after_connect_is_a_request(framing: bytes) -> None:
    """Another parser may take what follows for the body of CONNECT."""
    async with RawUpstream(fail_on_request) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        request = b"CONNECT gw:1 HTTP/1.1\r\nHost: gw\r\n" + framing + b"\r\n\r\nGET / HTTP/1.1\r\nHost: gw\r\n\r\n"
        response = await gateway.request(request)
        assert problem_of(response)["status"] == 405
        assert not upstream.wires


async def test_looking_for_idle_connections_asks_the_kernel_for_none_that_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With 4,000 clients that sent nothing each look took 20 ms, ten times a second while another waited."""
    asked: list[None] = []

    def ask(transport: asyncio.BaseTransport) -> bool:
        asked.append(None)
        return has_input(transport)

    monkeypatch.setattr("gateway.aiohttp_seam.server.has_input", ask)
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        clients = [await gateway.connect() for _ in range(3)]
        await clients[1].send(b"GET / HTTP/1.1\r\nHo")
        await clients[2].send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
        await clients[2].read_until(b"ok")
        await wait_until(lambda: gateway.gateway.connection_count == 3)
        asked.clear()
        gateway.gateway._traffic.make_room()
        assert await clients[2].read_some() == b""
        assert len(asked) == 1
        for client in clients:
            await client.close()


TOO_LARGE = post(b"much", target="/").replace(b"Connection: close\r\n", b"")


@pytest.mark.interpreted(reason="replaces a constant")
@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (TOO_LARGE, "body_too_large"),
        (b"GET /unknown HTTP/1.1\r\nHost: gw\r\n\r\n", "no_route"),
        (b"OPTIONS * HTTP/1.1\r\nHost: gw\r\n\r\n", "client_idle"),
    ],
    ids=["of-a-route", "without-a-route", "reply"],
)
async def test_client_that_takes_none_of_its_responses_is_cut_after_its_idle_time(
    request_bytes: bytes, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refusals and other responses without a transfer waited for it for ever."""
    monkeypatch.setattr("gateway.downstream.response._IDLE_SECONDS", 0.05)
    loop = asyncio.get_running_loop()
    keys = {"match": {"path": "/"}, "limits": {"max_body": 1}, "timeouts": {"idle": "50ms", "grace": "50ms"}}
    async with run_gateway(forward_config("http://127.0.0.1:9", **keys)) as gateway:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", gateway.port))
            await wait_until(lambda: gateway.gateway._traffic.connections)
            (connection,) = gateway.gateway._traffic.connections
            assert connection.transport is not None
            connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            await loop.sock_sendall(client, request_bytes * 200)
            await wait_until(lambda: not gateway.gateway.connection_count)
        assert gateway.log[-1]["code"] == code
        assert len(gateway.log) < 200

"""Drain: no request that reached the gateway is lost when it stops, and it says what it waits for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from gateway.aiohttp_seam import ServerConnection
from gateway.downstream.acceptor import Acceptor
from tests.bench.load import make_certificate
from tests.ops.test_ops import fetch
from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    RunningGateway,
    Wire,
    forward_config,
    read_request,
    responding,
    responding_in_halves,
    run_gateway,
    split_response,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n"
HALF_POST = b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 10\r\n\r\nhalf."
DELAYED = {"drain_delay": "1h"}
DRAINABLE = {"ops": {"listen": "127.0.0.1:0", "drain": "on"}}


async def kept(gateway: RunningGateway) -> Wire:
    """Return a connection that is kept after a request."""
    client = await gateway.connect()
    await client.send(GET)
    assert b"Connection: close" not in await client.read_until(b"ok")
    return client


@contextlib.asynccontextmanager
async def draining(gateway: RunningGateway) -> AsyncIterator[None]:
    """Begin to drain, without a turn of the loop in between; at the end wait until that is done."""
    task = gateway.gateway.drain()
    try:
        yield
    finally:
        await asyncio.wait_for(task, TIMEOUT_SECONDS)


def assert_last(response: bytes) -> None:
    """Assert that a response is whole, and that it announced the close of its connection."""
    status, headers, body = split_response(response)
    assert (status, headers.get("connection"), body) == (200, "close", b"ok")


async def test_upload_in_flight_ends_with_connection_close_and_idle_connections_end_at_once() -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        idle, client = await kept(gateway), await gateway.connect()
        await client.send(HALF_POST)
        await wait_until(lambda: gateway.gateway._handler.remaining_bytes() == [5])
        async with draining(gateway):
            assert await idle.read_to_end() == b""
            with pytest.raises(ConnectionRefusedError):
                await gateway.connect()
            await client.send(b"done.")
            assert_last(await client.read_to_end())
        await client.close()
        await idle.close()


async def test_request_that_only_the_kernel_has_received_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await kept(gateway)
        stop = Acceptor.stop

        def stop_and_send(acceptor: Acceptor) -> None:
            # In the turn of the loop in which idle connections are closed: it has not polled since.
            if gateway.gateway._acceptor._sock.fileno() >= 0:
                client.writer.write(GET)
            stop(acceptor)

        monkeypatch.setattr(Acceptor, "stop", stop_and_send)
        async with draining(gateway):
            assert_last(await client.read_to_end())
        await client.close()


async def test_request_whose_head_is_still_arriving_is_served() -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        first, later = await gateway.connect(), await kept(gateway)
        for client in (first, later):
            client.writer.write(GET[:20])
        async with draining(gateway):
            await wait_until(lambda: gateway.gateway._acceptor._sock.fileno() < 0)
            for client in (first, later):
                await client.send(GET[20:])
                assert_last(await client.read_to_end())
                await client.close()


async def test_connection_without_a_request_does_not_hold_the_drain() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, top={"drain_timeout": "1h"})) as gateway:
            silent, slow = await gateway.connect(), await gateway.connect()
            await slow.send(GET[:20])
            async with draining(gateway):
                assert await silent.read_to_end() == b""
                assert await slow.read_to_end() == b""
            await silent.close()
            await slow.close()


async def test_connections_in_the_kernels_queue_are_accepted_and_served() -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        clients = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(50)]
        for client in clients:
            client.sendall(GET)
        async with draining(gateway):
            for client in clients:
                reader, writer = await asyncio.open_connection(sock=client)
                assert_last(await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS))
                writer.close()


async def test_connections_in_the_kernels_queue_are_served_when_accepting_had_paused() -> None:
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        # As without a free descriptor.
        gateway.gateway._acceptor.pause()
        client = await gateway.connect()
        await client.send(GET)
        async with draining(gateway):
            await wait_until(lambda: gateway.gateway._handler.is_draining)
            gateway.gateway._acceptor.resume()
            assert_last(await client.read_to_end())
        await client.close()


@pytest.mark.expected_log("gateway", "max_connections are open", reason="idle clients hold all of them")
async def test_idle_connections_make_room_for_those_in_the_kernels_queue() -> None:
    """With `max_connections` idle ones, those that waited were reset."""
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, top={"max_connections": 2})) as gateway:
            idle = [await kept(gateway) for _ in range(2)]
            waiting = [await gateway.connect() for _ in range(2)]
            for client in waiting:
                await client.send(GET)
            async with draining(gateway):
                for client in waiting:
                    assert_last(await client.read_to_end())
            for client in (*idle, *waiting):
                await client.close()


@pytest.mark.slow
async def test_connection_whose_tls_handshake_has_yet_to_run_is_served(tmp_path: Path) -> None:
    certificate = str(await asyncio.to_thread(make_certificate, tmp_path))
    keys = {"tls": {"certificate": certificate, "key": certificate}}
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, top=keys)) as gateway:
            client = socket.create_connection(("127.0.0.1", gateway.port))
            async with draining(gateway):
                await wait_until(lambda: gateway.gateway._acceptor._sock.fileno() < 0)
                context = ssl.create_default_context(cafile=certificate)
                reader, writer = await asyncio.open_connection(sock=client, ssl=context, server_hostname="127.0.0.1")
                writer.write(GET)
                assert_last(await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS))
                writer.close()


async def test_requests_behind_the_one_in_flight_are_answered() -> None:
    release = asyncio.Event()

    async def script(wire: Wire) -> None:
        while await read_request(wire):
            await release.wait()
            await wire.send(OK)

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(GET * 3)
        await asyncio.wait_for(upstream.connected.wait(), TIMEOUT_SECONDS)
        async with draining(gateway):
            release.set()
            first, second, third = (await client.read_to_end()).split(b"HTTP/1.1 200 OK\r\n")[1:]
        assert b"Connection: close" not in first + second
        assert b"Connection: close" in third
        await client.close()


async def test_connection_whose_response_had_begun_is_closed_after_it() -> None:
    release = asyncio.Event()
    script = responding_in_halves(b"ha", release, b"lf")
    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(GET)
        await client.read_until(b"ha")
        async with draining(gateway):
            release.set()
            assert await client.read_to_end() == b"lf"
        await client.close()


async def test_delay_accepts_and_serves_while_not_ready() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, top=DELAYED)) as gateway:
            idle = await kept(gateway)
            task = gateway.gateway.drain()
            await wait_until(lambda: gateway.gateway._handler.is_draining)
            assert (await fetch(gateway.ops_url + "/readyz"))[::2] == (503, "draining\n")
            assert_last(await gateway.request(GET))
            # The kept connection was left open; its next response tells the client.
            await idle.send(GET)
            assert_last(await idle.read_to_end())
            await idle.close()
            # As a second signal does: nothing is in flight, so the gateway stops at once.
            gateway.gateway.stop_now()
            await asyncio.wait({task})
            assert task.cancelled()


async def test_second_signal_cuts_what_is_in_flight() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, top={"drain_timeout": "1h"})) as gateway:
            client = await gateway.connect()
            await client.send(HALF_POST)
            await wait_until(lambda: gateway.gateway.exchange_count)
            stopping = asyncio.create_task(gateway.gateway.stop())
            await wait_until(lambda: gateway.gateway._acceptor._sock.fileno() < 0)
            gateway.gateway.stop_now()
            assert b'"code": "cancelled"' in await client.read_to_end()
            await asyncio.wait_for(stopping, TIMEOUT_SECONDS)
            gateway.gateway.stop = contextlib.AsyncExitStack().aclose  # type: ignore[method-assign]  # already stopped
            await client.close()


@pytest.mark.parametrize("sent", [b"", GET[:9], b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 10\r\n\r\n"])
async def test_second_signal_closes_connections_whose_request_is_not_here_at_once(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They took the whole time that cut exchanges have to end, and what a client sent meanwhile was dropped."""
    monkeypatch.setattr("gateway.server._SHUTDOWN_SECONDS", 3600.0)
    # The last of them is a head whose short body is awaited.
    monkeypatch.setattr("gateway.aiohttp_seam.server._HOLD_SECONDS", 3600.0)
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, top=DELAYED)) as gateway:
            client = await kept(gateway)
            await gateway.wait_log_line()
            await client.send(sent)
            (connection,) = gateway.gateway._traffic.connections
            assert isinstance(connection, ServerConnection)
            await wait_until(lambda: connection._held == sent or (connection.is_waiting and not connection.is_kept))
            stopping = asyncio.create_task(gateway.gateway.stop())
            await wait_until(lambda: gateway.gateway._handler.is_draining)
            gateway.gateway.stop_now()
            assert (await client.read_to_end(), client.was_reset) == (b"", False)
            await asyncio.wait_for(stopping, TIMEOUT_SECONDS)
            assert (len(upstream.wires), len(gateway.log)) == (1, 1)
            gateway.gateway.stop = contextlib.AsyncExitStack().aclose  # type: ignore[method-assign]  # already stopped
            await client.close()


@pytest.mark.expected_log("gateway", "drain_timeout of 0.1 s is over: 1 exchange left", reason="the time is over")
async def test_drain_timeout_cancels_exchanges_and_is_logged() -> None:
    async def send_no_response(wire: Wire) -> None:
        await wire.read_to_end()

    async with RawUpstream(send_no_response) as upstream:
        async with run_gateway(forward_config(upstream.url, top={"drain_timeout": "100ms"})) as gateway:
            client = await gateway.connect()
            await client.send(GET)
            await asyncio.wait_for(upstream.connected.wait(), TIMEOUT_SECONDS)
            await gateway.gateway.stop()
            response = await client.read_to_end()
            await client.close()
            assert b'"code": "cancelled"' in response
            line = await gateway.wait_log_line()
            assert (line["outcome"], line["blame"]) == ("cancelled", "gateway")
            gateway.gateway.stop = contextlib.AsyncExitStack().aclose  # type: ignore[method-assign]  # already stopped


async def test_log_says_what_the_drain_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gateway")
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        clients = [await gateway.connect() for _ in range(2)]
        for client in clients:
            await client.send(HALF_POST)
        uploads = gateway.gateway._handler.remaining_bytes
        await wait_until(lambda: uploads() == [5, 5])
        async with draining(gateway):
            text = "draining: 2 exchanges left, 10 B to go; SIGTERM or Ctrl-C again to stop now"
            await wait_until(lambda: text in caplog.text)
            for client in clients:
                await client.send(b"done.")
                assert_last(await client.read_to_end())
                await client.close()
        assert "drain ended: no exchange is left" in caplog.text


async def test_get_drain_responds_when_all_is_done_and_the_process_stays() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, top=DRAINABLE)) as gateway:
            client = await gateway.connect()
            await client.send(HALF_POST)
            await asyncio.wait_for(upstream.connected.wait(), TIMEOUT_SECONDS)
            url = gateway.ops_url + "/drain"
            asked = [asyncio.create_task(fetch(url)) for _ in range(2)]
            await wait_until(lambda: gateway.gateway._acceptor._sock.fileno() < 0)
            assert not any(task.done() for task in asked)
            await client.send(b"done.")
            assert_last(await client.read_to_end())
            await client.close()
            assert {await task for task in asked} == {(200, "text/plain; charset=utf-8", "drained, 0 exchanges left\n")}
            assert (await fetch(url))[0] == 200
            assert (await fetch(gateway.ops_url + "/healthz"))[0] == 200
            assert (await fetch(gateway.ops_url + "/readyz"))[::2] == (503, "draining\n")


async def test_client_of_get_drain_that_leaves_does_not_end_the_drain() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, top={**DRAINABLE, **DELAYED})) as gateway:
            asking = asyncio.create_task(fetch(gateway.ops_url + "/drain"))
            await wait_until(lambda: gateway.gateway._handler.is_draining)
            asking.cancel()
            await asyncio.wait({asking})
            assert (await fetch(gateway.ops_url + "/readyz"))[::2] == (503, "draining\n")
            assert not gateway.gateway.drain().done()
            gateway.gateway.stop_now()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_drain_is_off_unless_configured_and_never_begins_with_head(method: str) -> None:
    top = {} if method == "GET" else DRAINABLE
    async with run_gateway(forward_config("http://127.0.0.1:9", top=top)) as gateway:
        async with aiohttp.ClientSession() as session:
            async with session.request(method, gateway.ops_url + "/drain") as response:
                assert response.status == (404 if method == "GET" else 405)
        assert not gateway.gateway._handler.is_draining


async def test_drain_with_a_token_needs_it() -> None:
    keys = {"ops": {**DRAINABLE["ops"], "token": "s3cret"}}
    async with run_gateway(forward_config("http://127.0.0.1:9", top=keys)) as gateway:
        url = gateway.ops_url + "/drain"
        for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic s3cret"}):
            assert (await fetch(url, **headers))[0] == 401
        assert not gateway.gateway._handler.is_draining
        for path in ("/metrics", "/healthz", "/readyz"):
            assert (await fetch(gateway.ops_url + path))[0] == 200
        assert (await fetch(url, Authorization="Bearer s3cret"))[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "gw"}, 200),
        ({"Host": "GW:9090"}, 200),
        ({"Host": "localhost:9090"}, 200),
        ({"Host": "10.0.0.1"}, 200),
        ({"Host": "[::1]:9090"}, 200),
        ({"Host": "10.0.0.1", "User-Agent": "kube-lifecycle/1.33", "Accept": "*/*"}, 200),
        ({"Host": "attacker.example:9090"}, 403),
        ({"Host": "10.0.0.1.attacker.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost", "Origin": "http://attacker.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "same-site"}, 403),
        # An image that a page shows, or a link, in browsers and over connections with fewer and fewer headers.
        ({"Host": "10.0.0.1", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ({"Host": "10.0.0.1", "Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 403),
        ({"Host": "10.0.0.1:9090", "Origin": "http://10.0.0.1:9090", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Host": "10.0.0.1", "Referer": "http://attacker.example/"}, 403),
        ({"Host": "10.0.0.1", "Accept-Language": "en-US,en;q=0.9"}, 403),
        # A page may set these of a request: with no referrer, no other header shows that it comes from a browser.
        ({"Host": "10.0.0.1", "Accept-Language": "*"}, 403),
        ({"Host": "10.0.0.1", "Accept-Language": "", "Accept": ""}, 403),
        # Node's fetch, and what differs from it.
        ({"Host": "10.0.0.1", "Sec-Fetch-Mode": "cors", "Accept-Language": "*"}, 200),
        ({"Host": "10.0.0.1", "Sec-Fetch-Mode": "cors", "Accept-Language": "en"}, 403),
        ({"Host": "10.0.0.1", "Sec-Fetch-Mode": "cors"}, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "cors", "Accept-Language": "*"}, 403),
        ({"Host": "localhost", "Origin": "null", "Sec-Fetch-Mode": "cors", "Accept-Language": "*"}, 403),
    ],
)
async def test_web_page_cannot_drain(headers: dict[str, str], status: int) -> None:
    keys = {"ops": {**DRAINABLE["ops"], "allow_hosts": ["gw"]}}
    async with run_gateway(forward_config("http://127.0.0.1:9", top=keys)) as gateway:
        assert (await fetch(gateway.ops_url + "/drain", **headers))[0] == status
        assert gateway.gateway._handler.is_draining is (status == 200)
        assert (await fetch(gateway.ops_url + "/healthz", **headers))[0] == 200

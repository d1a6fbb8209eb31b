"""A client that leaves while nothing is read from it is noticed at once: its slot is free, and the blame is its own.

`idle` is 60 s in these tests, so what takes no longer than a test may was noticed.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import ssl
import termios
from pathlib import Path
from typing import Any

import pytest

from gateway.transfer import open_socket
from tests.bench.load import make_certificate
from tests.peers import RawUpstream, RunningGateway, Wire, form, forward_config, run_gateway, wait_until

GET = b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n"
LENGTH = 50 * 2**20
BLOCK = b"x" * 2**14
HOW = pytest.mark.parametrize("how", ["close", "half-close", "reset"])


async def leave(client: Wire, how: str) -> None:
    if how == "reset":
        client.reset()
    elif how == "close":
        client.writer.close()
    else:
        # Treated as leaving: docs/errors.md.
        client.writer.write_eof()


async def read_head_only(wire: Wire) -> None:
    wire.writer.transport.pause_reading()  # type: ignore[attr-defined]  # an upstream that does not read
    await asyncio.Event().wait()


def unread_bytes(gateway: RunningGateway) -> int:
    """Return how many bytes of the first client's connection the gateway has not read."""
    transport = gateway.gateway._traffic.connections[0].transport
    assert transport is not None
    count = array.array("i", [0])
    fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, count)
    return count[0]


async def send_until_unread(gateway: RunningGateway, client: Wire, block: bytes = BLOCK) -> None:
    """Send until the gateway reads no more, but so little that the client's end still reaches its kernel."""
    for _ in range(LENGTH // len(block)):
        await client.send(block)
        for _ in range(100):
            await asyncio.sleep(0)
        if unread_bytes(gateway) > 0:
            return
    pytest.fail("the gateway read everything")


async def assert_noticed(gateway: RunningGateway, count: int = 1) -> None:
    line = await gateway.wait_log_line(count)
    assert (line["code"], line["outcome"], line["blame"]) == ("client_left", "client_left", "client")


def head(content_type: str) -> bytes:
    kind = f"POST / HTTP/1.1\r\nHost: gw\r\nContent-Type: {content_type}\r\nContent-Length: {LENGTH}\r\n\r\n"
    return kind.encode()


FORM = head("multipart/form-data; boundary=XBOUNDARYX") + form(('name="f"; filename="f"', b"")).partition(b"\r\n--X")[0]


@HOW
@pytest.mark.parametrize(
    ("action", "request_start"),
    [
        ({}, head("application/octet-stream")),
        ({}, FORM),
        ({"forward": {"multipart": "strict"}}, FORM),
        ({"split": {"upstream": "up"}}, FORM),
    ],
    ids=["raw", "form", "strict", "split"],
)
async def test_client_that_leaves_while_the_upstream_does_not_read(
    action: dict[str, Any], request_start: bytes, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was noticed with the next read only: the slot was held until `idle`, and the upstream blamed."""

    def open_small_socket(address: tuple[Any, ...]) -> socket.socket:
        sock = open_socket(address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**14)
        return sock

    monkeypatch.setattr("gateway.upstream.client.open_socket", open_small_socket)
    async with RawUpstream(read_head_only) as upstream:
        upstream._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
        config = forward_config(upstream.url, upstream_keys={"max_in_flight": 1}, **action)
        if "split" in action:
            del config["routes"][0]["forward"]
        async with run_gateway(config) as gateway:
            client = await gateway.connect()
            await client.send(request_start)
            await send_until_unread(gateway, client)
            await leave(client, how)
            await assert_noticed(gateway)
            assert gateway.gateway._runtime.upstreams["up"].capacity.taken == 0
            client.writer.transport.abort()


@HOW
async def test_client_that_leaves_while_it_waits_for_a_slot(how: str) -> None:
    async with (
        RawUpstream(read_head_only) as upstream,
        run_gateway(
            forward_config(upstream.url, upstream_keys={"max_in_flight": 1, "queue_timeout": "60s"})
        ) as gateway,
    ):
        # The body is longer than what the gateway reads before there is a slot.
        client, first = await gateway.connect(), await gateway.connect()
        await first.send(GET)
        await wait_until(lambda: upstream.wires)
        await client.send(head("application/octet-stream"))
        await send_until_unread(gateway, client)
        assert gateway.stats.upstreams["up"].queue_length == 1
        await leave(client, how)
        await assert_noticed(gateway)
        assert gateway.stats.upstreams["up"].queue_length == 0
        client.writer.transport.abort()
        await first.close()
        await assert_noticed(gateway, 2)


@HOW
async def test_client_that_leaves_while_a_throttle_holds_it(how: str) -> None:
    async def read_all(wire: Wire) -> None:
        await wire.read_to_end()

    filters = [{"throttle": {"rate": "1KiB/s"}}]
    async with RawUpstream(read_all) as upstream, run_gateway(forward_config(upstream.url, filters=filters)) as gateway:
        client = await gateway.connect()
        await client.send(head("application/octet-stream"))
        await send_until_unread(gateway, client)
        await leave(client, how)
        await assert_noticed(gateway)
        client.writer.transport.abort()


@HOW
async def test_client_that_leaves_while_a_pipelined_request_waits(how: str) -> None:
    async with RawUpstream(read_head_only) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        client = await gateway.connect()
        await client.send(GET)
        await wait_until(lambda: upstream.wires)
        await send_until_unread(gateway, client, GET * 500)
        await leave(client, how)
        await assert_noticed(gateway)
        client.writer.transport.abort()


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_client_over_tls_that_leaves_while_a_throttle_holds_it(how: str, tmp_path: Path) -> None:
    """A paused TLS transport waits for the end that it does not read: it is aborted."""
    certificate = str(make_certificate(tmp_path))

    async def read_all(wire: Wire) -> None:
        await wire.read_to_end()

    keys = {
        "filters": [{"throttle": {"rate": "1KiB/s"}}],
        "top": {"tls": {"certificate": certificate, "key": certificate}},
    }
    async with RawUpstream(read_all) as upstream, run_gateway(forward_config(upstream.url, **keys)) as gateway:
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
        client = Wire(*await asyncio.open_connection("127.0.0.1", gateway.port, ssl=context))
        await client.send(head("application/octet-stream"))
        await send_until_unread(gateway, client)
        if how == "reset":
            client.reset()
        else:
            # asyncio's `close` waits for the other end before it closes the socket.
            client.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
        await assert_noticed(gateway)
        client.writer.transport.abort()

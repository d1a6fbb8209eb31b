"""Responses of the gateway itself to clients over TLS: they are waited for like those over plain TCP."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

from tests.certificates import make_certificate
from tests.peers import TIMEOUT_SECONDS, RawUpstream, RunningGateway, form, post, responding, run_gateway, wait_until

PART_COUNT = 9
HANDSHAKE_BYTES = 16384
LARGE = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
KEPT = post(form(*[(f'name="a"; filename="{number}"', b"z") for number in range(PART_COUNT)])).replace(
    b"Connection: close\r\n", b""
)


@contextlib.asynccontextmanager
async def connected(
    directory: Path, idle: str
) -> AsyncIterator[tuple[RunningGateway, asyncio.StreamReader, asyncio.StreamWriter]]:
    """Run a gateway, and connect a client over TLS with a small receive buffer that reads nothing yet."""
    certificate = make_certificate(directory)
    async with RawUpstream(responding(LARGE)) as upstream:
        split = {"upstream": "up", "body": "raw", "max_response_bytes": "16MiB"}
        route = {"name": "s", "match": {"prefix": "/"}, "split": split, "timeouts": {"idle": idle}}
        tls = {"certificate": str(certificate.path), "key": str(certificate.key)}
        config = {"tls": tls, "upstreams": {"up": {"endpoints": [upstream.url]}}, "routes": [route]}
        async with run_gateway(config) as gateway:
            sock = socket.create_connection(("127.0.0.1", gateway.port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            context = certificate.client_context()
            reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname="localhost")
            pausable(writer).pause_reading()
            try:
                yield gateway, reader, writer
            finally:
                writer.transport.abort()


def pausable(writer: asyncio.StreamWriter) -> asyncio.ReadTransport:
    """Return the transport of a connection, by its other half."""
    return cast(asyncio.ReadTransport, writer.transport)


def has_begun(writer: asyncio.StreamWriter) -> bool:
    """Return whether the response has begun to arrive: more is received than a handshake needs."""
    received = fcntl.ioctl(writer.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
    (count,) = struct.unpack("i", received)
    return bool(count > HANDSHAKE_BYTES)


async def test_client_over_tls_that_takes_nothing_of_an_own_response_is_cut(tmp_path: Path) -> None:
    """asyncio's TLS transport holds next to nothing itself: the response was complete at once, unsent as it was."""
    async with connected(tmp_path, "300ms") as (gateway, _, writer):
        writer.write(KEPT)
        line = await gateway.wait_log_line()
        assert (line["outcome"], line["code"]) == ("client_slow", "client_idle")


async def test_client_over_tls_that_reads_late_gets_all_of_an_own_response_and_the_next_one(tmp_path: Path) -> None:
    async with connected(tmp_path, "30s") as (gateway, reader, writer):
        writer.write(KEPT)
        await wait_until(lambda: has_begun(writer))
        pausable(writer).resume_reading()
        for _ in range(2):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_SECONDS)
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            assert length > PART_COUNT * 10**6
            document = await asyncio.wait_for(reader.readexactly(length), TIMEOUT_SECONDS)
            assert document.endswith(b"}\n")
            assert (await gateway.wait_log_line())["outcome"] == "complete"
            writer.write(KEPT)


async def test_client_over_tls_that_leaves_within_an_own_response_is_logged_as_gone(tmp_path: Path) -> None:
    async with connected(tmp_path, "30s") as (gateway, _, writer):
        writer.write(KEPT)
        await wait_until(lambda: has_begun(writer))
        writer.transport.abort()
        assert (await gateway.wait_log_line())["outcome"] == "client_left"

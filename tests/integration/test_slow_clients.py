"""Clients that are slow, by curl, and that are slow on purpose, in numbers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.bench.load import make_certificate
from tests.conftest import require_tool
from tests.integration.test_memory import gateway_process, memory
from tests.peers import OK, RawUpstream, Wire, forward_config, read_request, responding, run_gateway, wait_until
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
DATA = os.urandom(6_000_000) * 4
#: Clients, and what the gateway holds at most (gateway/downstream/acceptor.py).
FLOOD = 600
HANDSHAKE_BYTES = 335 * 1024
MAX_HANDSHAKES = 128


@pytest.mark.parametrize("direction", ["download of a response", "download of a file", "upload"])
async def test_curl_with_a_limited_rate_is_not_cut(direction: str, tmp_path: Path) -> None:
    """It was cut after `grace`: what the kernels hold hid its progress. It pauses for longer than `grace` here."""
    curl = require_tool("curl")

    async def respond(wire: Wire) -> None:
        while True:
            _, body = await read_request(wire)
            assert body in (b"", DATA)
            await wire.send(OK if body else b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA) + DATA)

    (tmp_path / "data").write_bytes(DATA)
    async with RawUpstream(respond) as upstream:
        config: dict[str, Any] = forward_config(upstream.url)
        config["routes"].append({"name": "f", "match": {"prefix": "/f/"}, "files": {"directory": str(tmp_path)}})
        for route in config["routes"]:
            route["timeouts"] = {"idle": "5s", "min_rate": "200KB/s", "grace": "500ms"}
        async with run_gateway(config) as gateway:
            target = gateway.url + ("/f/data" if "file" in direction else "/")
            source = ("-T", str(tmp_path / "data")) if direction == "upload" else ()
            rate = ("--limit-rate", "5M", "-sS", "--fail", "-o", str(tmp_path / "out"))
            process = await asyncio.create_subprocess_exec(curl, *rate, *source, target)
            assert await process.wait() == 0
            line = await gateway.wait_log_line()
            assert (line["status"], line["outcome"]) == (200, "complete")
            # Otherwise nothing was slow.
            assert line["seconds"] > 1
        assert (tmp_path / "out").read_bytes() == (b"ok" if direction == "upload" else DATA)


async def handshake(port: int, context: ssl.SSLContext) -> Wire:
    return Wire(*await asyncio.open_connection("127.0.0.1", port, ssl=context))


def first_flight(context: ssl.SSLContext) -> bytes:
    """Return the ClientHello of a client."""
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("is_begun", [False, True], ids=["nothing is sent", "after the ClientHello"])
async def test_flood_of_handshakes_that_stall_takes_bounded_memory_and_others_are_served(
    tmp_path: Path, is_begun: bool
) -> None:
    certificate, ops_port = make_certificate(tmp_path), free_port()
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    hello = first_flight(context) if is_begun else b""
    top = {
        "tls": {"certificate": str(certificate), "key": str(certificate)},
        "ops": {"listen": f"127.0.0.1:{ops_port}"},
    }
    async with (
        RawUpstream(responding(OK)) as upstream,
        gateway_process(forward_config(upstream.url, top=top), tmp_path) as (pid, port),
    ):

        async def ask() -> None:
            client = await handshake(port, context)
            await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
            assert (await client.read_to_end()).endswith(b"\r\n\r\nok")
            await client.close()

        await ask()
        before = memory(pid, "VmRSS")
        with contextlib.ExitStack() as flood:
            for _ in range(FLOOD):
                stalled = flood.enter_context(socket.create_connection(("127.0.0.1", port)))
                stalled.sendall(hello)
            for _ in range(10):
                await ask()
                assert await asyncio.to_thread(is_healthy, ops_port)
            assert memory(pid, "VmHWM") - before < 2 * MAX_HANDSHAKES * HANDSHAKE_BYTES
        await ask()
        await wait_until(lambda: open_connections(ops_port) == 0)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["status"] for line in lines if "status" in line] == [200] * 12


def is_healthy(port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as response:
        return bool(response.status == 200)


def open_connections(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("gateway_connections{"))

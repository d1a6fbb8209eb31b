"""A gateway process that runs out of descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path

import pytest

from tests.integration.test_memory import gateway_process
from tests.peers import OK, RawUpstream, Wire, forward_config, responding
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
GET = b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 2\r\n\r\n"


async def connect(port: int) -> Wire:
    return Wire(*await asyncio.open_connection("127.0.0.1", port))


async def ask(client: Wire) -> None:
    """Send a request and assert that its response is 200."""
    await client.send(GET)
    await receive(client)


async def receive(client: Wire) -> None:
    assert b" 200 OK\r\n" in await client.read_head()
    assert await client.read_exactly(2) == b"ok"


async def test_storm_of_connections_with_64_descriptors_disturbs_no_other_client_and_passes(tmp_path: Path) -> None:
    """asyncio's server wrote 138,000 log lines in five seconds, and /healthz got no response."""
    ops_port = free_port()
    top = {"ops": {"listen": f"127.0.0.1:{ops_port}"}}
    async with RawUpstream(responding(OK)) as upstream:
        config = forward_config(upstream.url, top=top)
        async with gateway_process(config, tmp_path, ulimit="-n 64") as (_, port):
            client = await connect(port)
            with contextlib.ExitStack() as storm:
                for _ in range(500):
                    storm.enter_context(socket.create_connection(("127.0.0.1", port)))
                await client.send(POST + b"a")
                for _ in range(10):
                    # The next request begins with the end of this one: idle connections are closed for those that wait.
                    await client.send(b"b" + POST + b"a")
                    await receive(client)
                    probe = await connect(ops_port)
                    await probe.send(b"GET /healthz HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
                    assert (await probe.read_to_end()).startswith(b"HTTP/1.1 200 ")
                    await probe.close()
                await client.send(b"b")
                await receive(client)
            late = await connect(port)
            await ask(late)
            for each in (client, late):
                await each.close()
    messages = [json.loads(line).get("message", "") for line in (tmp_path / "log").read_text().splitlines()]
    # One in 10 seconds.
    assert 1 <= len([message for message in messages if "accepting on port" in message]) < 5
    assert len(messages) < 30

"""Concurrent random failures of upstreams and clients, from a fixed seed.

In every case: no request hangs, no file or task is left, every request has one line in the access log, no fault is
blamed on the gateway, and no incomplete response looks complete.
"""

from __future__ import annotations

import asyncio
import collections
import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.peers import RunningGateway, Wire, chunked, form, post, run_gateway

pytestmark = pytest.mark.slow
CLIENTS, ROUNDS = 12, 30
BIG = b"y" * 400_000
#: The bodies that a client may receive complete.
WHOLE = {b"ok", b"abc", b"to the end", b"early", BIG}
RESPONSES = {
    "plain": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "big": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BIG) + BIG,
    "two responses": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
}
CLOSING_RESPONSES = {
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\ncut",
    "cut chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ncut\r\n",
    "malformed chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ncut\r\nZZ\r\n",
    "not http": b"SMTP ready\r\n\r\n",
    "to the end": b"HTTP/1.1 200 OK\r\n\r\nto the end",
    "nothing": b"",
}


class RandomUpstream:
    """A server that chooses each response at random."""

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._run(Wire(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, wire: Wire) -> None:
        try:
            while await self._response(wire):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            wire.writer.transport.abort()

    async def _response(self, wire: Wire) -> bool:
        head = (await wire.read_head()).lower()
        is_bodiless, is_early = head.startswith(b"head"), False
        if self._generator.random() < 0.1:
            await wire.send(b"HTTP/1.1 413 No\r\nContent-Length: 5\r\n\r\n" + (b"" if is_bodiless else b"early"))
            # Read the rest of the body: if the gateway reuses the connection too early, a request is read as body here.
            is_early = True
        if b"transfer-encoding: chunked" in head:
            await wire.read_until(b"\r\n0\r\n\r\n")
        elif b"content-length: " in head:
            await wire.read_exactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        if is_early:
            return self._generator.random() < 0.5
        if self._generator.random() < 0.3:
            response = CLOSING_RESPONSES[self._generator.choice(list(CLOSING_RESPONSES))]
            await wire.send(response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if is_bodiless and response else response)
            return False
        response = RESPONSES[self._generator.choice(["plain", "plain", "plain", *RESPONSES])]
        if is_bodiless:
            response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
        await wire.send(response)
        return True


def request(generator: random.Random) -> bytes:
    size = generator.choice([1, 5000, 300_000])
    return generator.choice(
        [
            b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n",
            b"HEAD / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n",
            post(b"z" * size, content_type="x/y"),
            post(form(('name="f"; filename="a"', b"d" * size))),
            b"POST / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunked(b"q" * 1000, b"r" * size),
        ]
    )


async def send_random_request(
    gateway: RunningGateway, generator: random.Random, seen: collections.Counter[str]
) -> None:
    sent = request(generator)
    client = await gateway.connect()
    try:
        if generator.random() < 0.15:
            await client.send_all([sent[: generator.randrange(30, len(sent))]])
            client.reset()
            seen["left"] += 1
            return
        half = generator.randrange(1, len(sent))
        await client.send_all([sent[:half]])
        # The pause lets an early response arrive before the rest of the request is sent.
        await asyncio.sleep(generator.choice([0, 0, 0.01]))
        await client.send_all([sent[half:]])
        response = await client.read_to_end()
    finally:
        await client.close()
    head, _, body = response.partition(b"\r\n\r\n")
    seen["responded"] += 1
    assert b"evil" not in response
    if sent.startswith(b"HEAD") or client.was_reset:
        return
    if b"transfer-encoding: chunked" in head.lower():
        if not body.endswith(b"0\r\n\r\n"):
            return
        body = body.partition(b"\r\n")[2].partition(b"\r\n")[0]
    elif b"content-length: " in head.lower():
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        if len(body) < length:
            return
    # The gateway's own responses are JSON: the result of an upload or a split, or a problem document.
    assert body in WHOLE or b"json" in head, response[:300]


DIGEST = {"digest": {"algorithm": "sha256"}}
ACTIONS: dict[str, dict[str, Any]] = {
    "forward": {"forward": {"upstream": "up"}},
    "digest": {"forward": {"upstream": "up"}, "filters": [DIGEST]},
    "unwrap": {"forward": {"upstream": "up", "body": "raw"}},
    "strict": {"forward": {"upstream": "up", "multipart": "strict"}},
    "split": {"split": {"upstream": "up"}},
    "split, stop on error": {"split": {"upstream": "up", "body": "raw", "on_error": "stop"}, "filters": [DIGEST]},
    "store": {"store": {"if_exists": "rename"}, "filters": ["compress"]},
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("action", ACTIONS)
async def test_random_failures_leave_no_file_and_no_incomplete_response_looks_complete(
    action: str, seed: int, tmp_path: Path
) -> None:
    generator = random.Random(seed)
    upstream = RandomUpstream(generator)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=2**20)
    seen: collections.Counter[str] = collections.Counter()
    try:
        route = {"name": "r", "match": {"prefix": "/"}, **ACTIONS[action]}
        if action == "store":
            route["store"] = {"directory": str(tmp_path), **route["store"]}
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with run_gateway({"upstreams": {"up": {"endpoints": [url]}}, "routes": [route]}) as gateway:

            async def run_client() -> None:
                for _ in range(ROUNDS):
                    await send_random_request(gateway, generator, seen)

            async with asyncio.TaskGroup() as group:
                for _ in range(CLIENTS):
                    group.create_task(run_client())
    finally:
        server.close()
        await upstream.close()
        await server.wait_closed()
    codes = collections.Counter(line["code"] for line in gateway.log)
    # A client that disconnects before it has sent a whole head leaves no log line.
    assert seen["responded"] <= len(gateway.log) <= CLIENTS * ROUNDS, (seen, codes)
    assert not {"bug", "bad_request", "bad_framing"} & set(codes), codes
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]

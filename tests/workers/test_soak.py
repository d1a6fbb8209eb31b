"""Chaos over all workers, for minutes: kills, reloads and drains under mixed load, from a seed.

No incomplete body looks complete, no request hangs, no counter falls; at the end no slot is leaked, and processes and
descriptors are back to where they were.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers import form, post, split_response, wait_until
from tests.workers.processes import Processes, run_processes
from tests.workers.test_counts import Series, fallen, open_descriptors, scrape

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

#: `SOAK_SECONDS=20` for a short look.
SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "300"))
#: A request that takes longer hangs.
REQUEST_SECONDS = 60.0
WORKERS, CLIENTS, SLOTS = 4, 24, 5
BLOCK = random.Random(0).randbytes(2**20)
SIZES = (1, 2000, 300_000, 3_000_000)
PUT = "PUT {} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Length: {}\r\n\r\n"
GET = "GET {} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
CONFIG: dict[str, Any] = {
    "workers": WORKERS,
    "drain_timeout": "5s",
    "routes": [
        {"name": "forward", "match": {"prefix": "/forward"}, "forward": {"upstream": "up"}},
        {"name": "limited", "match": {"prefix": "/limited"}, "forward": {"upstream": "limited"}},
        {"name": "split", "match": {"path": "/split"}, "split": {"upstream": "up", "body": "raw"}},
        {"name": "store", "match": {"prefix": "/store"}, "store": {"if_exists": "replace"}},
        {"name": "files", "match": {"prefix": "/files"}, "files": {}},
    ],
}


def pattern(size: int) -> bytes:
    """Return the bytes of every body of this size."""
    return (BLOCK * (size // len(BLOCK) + 1))[:size]


class Upstream:
    """Sends N bytes for /N, and the hash of the body for other requests; counts how many it serves at once.

    It waits for `seconds` before each response.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.active = self.most = 0
        self._seconds = seconds
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[str]:
        """Serve; yield the URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._run_connection(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.active += 1
                self.most = max(self.most, self.active)
                try:
                    await self._respond(head, reader, writer)
                finally:
                    self.active -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def _respond(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, target = head.decode("latin-1").split(" ")[:2]
        if method == "GET":
            body = pattern(int(target.rpartition("/")[2]))
        else:
            digest = hashlib.sha256()
            async for data in _body(head.lower(), reader):
                digest.update(data)
            body = digest.hexdigest().encode()
        await asyncio.sleep(self._seconds)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()


async def _body(head: bytes, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield a request body. Raises IncompleteReadError if it is cut."""
    if b"transfer-encoding: chunked" in head:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    elif b"content-length: " in head:
        yield await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))


class Load:
    """Clients that send requests of all kinds until told to stop, and check every response that looks complete."""

    def __init__(self, gateway: Processes, generator: random.Random, directory: Path) -> None:
        self._gateway = gateway
        self._generator = generator
        self._directory = directory
        self._number = 0
        self.is_over = False
        #: Responses by what was asked and the status; 0 for those that were cut.
        self.seen: collections.Counter[tuple[str, int]] = collections.Counter()

    async def run_client(self) -> None:
        """Send one request after another."""
        kinds = (self._upload, self._limited, self._download, self._file, self._split, self._store, self._leave)
        while not self.is_over:
            await asyncio.wait_for(self._generator.choice(kinds)(), REQUEST_SECONDS)

    async def _upload(self) -> None:
        body = pattern(self._generator.choice(SIZES))
        response = await self._exchange("upload", PUT.format("/forward/a", len(body)).encode() + body)
        assert response in (None, hashlib.sha256(body).hexdigest().encode())

    async def _limited(self) -> None:
        body = pattern(self._generator.choice(SIZES[:3]))
        response = await self._exchange("limited", PUT.format("/limited/a", len(body)).encode() + body)
        assert response in (None, hashlib.sha256(body).hexdigest().encode())

    async def _download(self) -> None:
        size = self._generator.choice(SIZES)
        assert await self._exchange("download", GET.format(f"/forward/{size}").encode()) in (None, pattern(size))

    async def _file(self) -> None:
        assert await self._exchange("file", GET.format("/files/big.bin").encode()) in (None, pattern(SIZES[-1]))

    async def _split(self) -> None:
        files = [pattern(self._generator.choice(SIZES[:3])) for _ in range(3)]
        body = form(*((f'name="f"; filename="{number}"', data) for number, data in enumerate(files)))
        response = await self._exchange("split", post(body, target="/split"))
        if response is not None:
            hashes = [part["body"] for part in json.loads(response)["parts"]]
            assert hashes == [hashlib.sha256(data).hexdigest() for data in files]

    async def _store(self) -> None:
        self._number += 1
        name, body = f"{self._number}.bin", pattern(self._generator.choice(SIZES))
        response = await self._exchange("store", PUT.format(f"/store/{name}", len(body)).encode() + body)
        path = self._directory / name
        # A connection may be cut after the commit. A file that is there is whole.
        content = await asyncio.to_thread(lambda: path.read_bytes() if path.exists() else None)
        assert content == body or (response is None and content is None)
        await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _leave(self) -> None:
        """Leave in the middle of an upload."""
        _, writer = await self._connect()
        writer.write(PUT.format("/limited/a", 500_000).encode() + pattern(200_000))
        await asyncio.sleep(self._generator.random() * 0.1)
        writer.transport.abort()
        self.seen["leave", 0] += 1

    async def _exchange(self, kind: str, request: bytes) -> bytes | None:
        """Send a request, at times slowly; return the body of a whole response of success, None for others."""
        pause = self._generator.choice([0.0, 0.0, 0.02, 0.2])
        data = b""
        reader, writer = await self._connect()
        try:
            for start in range(0, len(request), 2**17):
                writer.write(request[start : start + 2**17])
                await writer.drain()
                await asyncio.sleep(pause)
            while piece := await reader.read(2**17):
                data += piece
                await asyncio.sleep(pause)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
        if b"\r\n\r\n" not in data:
            self.seen[kind, 0] += 1
            return None
        status, headers, body = split_response(data)
        is_whole = len(body) == int(headers.get("content-length", -1))
        if headers.get("transfer-encoding") == "chunked":
            is_whole = body.endswith(b"0\r\n\r\n")
            body = b"".join(_chunks(body)) if is_whole else b""
        self.seen[kind, status if is_whole else 0] += 1
        # Refused: the queue is full, or the worker stops.
        assert status in (200, 201, 503, 207), data[:2000]
        return body if is_whole and status in (200, 201) else None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # Never refused: another worker accepts.
        return await asyncio.open_connection("127.0.0.1", self._gateway.port)


def _chunks(body: bytes) -> list[bytes]:
    chunks = []
    while body:
        size, _, body = body.partition(b"\r\n")
        chunks.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return chunks


async def break_things(gateway: Processes, generator: random.Random, until: float) -> collections.Counter[str]:
    """Kill, drain and reload until a time; scrape meanwhile."""
    done: collections.Counter[str] = collections.Counter()
    shown: dict[Series, float] = {}
    while time.monotonic() < until:
        await asyncio.sleep(1 + generator.random())
        action = generator.choice(["kill", "drain", "reload", "nothing", "nothing"])
        done[action] += 1
        workers = gateway.workers
        if action in ("kill", "drain") and workers:
            with contextlib.suppress(ProcessLookupError):
                number = signal.SIGKILL if action == "kill" else signal.SIGTERM
                os.kill(generator.choice(workers), number)
        elif action == "reload":
            gateway.write_config(workers=generator.randint(2, WORKERS), max_connections=10_000 + done["reload"])
            gateway.hang_up()
            await gateway.wait_log("the config was replaced", done["reload"])
        later = await scrape(gateway)
        assert fallen(shown, later) == []
        shown = later
    return done


async def test_chaos_leaves_nothing_behind(tmp_path: Path) -> None:
    generator = random.Random(1)
    stored = tmp_path / "stored"
    await asyncio.to_thread(stored.mkdir)
    await asyncio.to_thread((stored / "big.bin").write_bytes, pattern(SIZES[-1]))
    up, limited = Upstream(), Upstream(seconds=0.2)
    async with up.run() as url, limited.run() as limited_url:
        config = {
            **CONFIG,
            "upstreams": {
                "up": {"endpoints": [url]},
                "limited": {"endpoints": [limited_url], "max_in_flight": SLOTS, "max_queued": 1000},
            },
            "routes": [_with_directory(route, stored) for route in CONFIG["routes"]],
        }
        async with run_processes(tmp_path, config) as gateway:
            await gateway.wait_started()
            before = [open_descriptors(pid) for pid in (gateway.supervisor, gateway.template, *gateway.workers)]
            load = Load(gateway, generator, stored)
            async with asyncio.TaskGroup() as group:
                for _ in range(CLIENTS):
                    group.create_task(load.run_client())
                done = await break_things(gateway, generator, time.monotonic() + SOAK_SECONDS)
                load.is_over = True
            print(dict(load.seen), dict(done))
            await _check_what_is_left(gateway, done["reload"], before)
            # The requests of a killed worker end at the upstream a little later than their slots are free.
            limited.most = 0
            uploads = [gateway.request(PUT.format("/limited/a", 1).encode() + b"x") for _ in range(4 * SLOTS)]
            assert {split_response(response)[0] for response in await asyncio.gather(*uploads)} == {200}
            assert limited.most == SLOTS
            await wait_until(lambda: os.listdir(stored) == ["big.bin"])
            assert await gateway.terminate() == 0


def _with_directory(route: dict[str, Any], directory: Path) -> dict[str, Any]:
    return {
        key: {**value, "directory": str(directory)} if key in ("store", "files") else value
        for key, value in route.items()
    }


async def _check_what_is_left(gateway: Processes, reloads: int, before: list[int]) -> None:
    """Check processes, gauges and descriptors once all workers are there and idle."""
    # The sweep of a reload removes what killed workers have left of uploads.
    gateway.write_config(workers=WORKERS, max_connections=20_000)
    gateway.hang_up()
    await gateway.wait_log("the config was replaced", reloads + 1)
    gauges = ("_in_flight", "gateway_upstream_queue_length", "gateway_connections")
    async with asyncio.timeout(REQUEST_SECONDS):
        while True:
            shown = await scrape(gateway)
            left = {series: number for series, number in shown.items() if series[0].endswith(gauges) and number}
            count = shown["gateway_workers", ()]
            after = [open_descriptors(pid) for pid in (gateway.supervisor, gateway.template, *gateway.workers)]
            if not left and count == WORKERS and len(after) == len(before) and sum(after) <= sum(before):
                return
            await asyncio.sleep(1)

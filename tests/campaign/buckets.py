"""The bucket of all plans: a relay with faults in front of a real S3 server (moto's), in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.campaign.plans import BucketFault, Plan
from tests.campaign.upstreams import BIG, SMALL
from tests.peers import Wire
from tests.s3_server import S3Server

#: So that small files become multipart uploads. The server's least size of a part is set to match.
_PART_BYTES = 200_000
_ID = re.compile(rb"plan-(\d+)")
_SERVED = re.compile(rb"/served/plan-\d+")
_STALL_SECONDS = 30.0
_RESPONSES = {
    BucketFault.ERROR: b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
    BucketFault.BUSY: b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n",
    BucketFault.DENIED: b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n",
    BucketFault.NOT_HTTP: b"SMTP ready\r\n\r\n",
    BucketFault.CLOSE: b"",
}
_BEFORE = frozenset({*_RESPONSES, BucketFault.STALL, BucketFault.RESET})


class CampaignBucket:
    """The relay. Made by `run_bucket`."""

    def __init__(self, server: S3Server, plans: dict[int, Plan], generator: random.Random) -> None:
        self._server = server
        self._plans = plans
        self._generator = generator
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    async def start(self) -> asyncio.Server:
        """Listen."""
        listening = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**21, backlog=512)
        self.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        return listening

    async def cut_stalled(self) -> None:
        """End the connections that stall."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def clear(self) -> None:
        """Empty the bucket, but for what is served. Blocks, as the methods below."""
        self._server.ask("/moto-api/reset", "POST")
        self._server.ask("/bucket", "PUT")
        for name, data in (("small", SMALL), ("big", BIG)):
            self._server.ask(f"/bucket/served/{name}", "PUT", data)

    def stored(self) -> dict[str, bytes]:
        """Return what was stored, by name."""
        keys = self._server.keys()
        stored = [key for key in keys if key.startswith("stored/")]
        return {key.removeprefix("stored/"): self._server.ask(f"/bucket/{key}") for key in stored}

    def open_uploads(self) -> list[int]:
        """Return the numbers of plans with a multipart upload that is open."""
        return [int(number) for number in _ID.findall(self._server.ask("/bucket?uploads"))]

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._run(Wire(reader, writer)), name="bucket")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, wire: Wire) -> None:
        try:
            await self._respond(wire)
            await wire.close()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            wire.writer.transport.abort()

    async def _respond(self, wire: Wire) -> None:
        """Read a request, and respond with the server's response or with what the plan says."""
        head = await wire.reader.readuntil(b"\r\n\r\n")
        plan = self._plan_of(head)
        fault = self._fault_of(plan, head)
        if fault is BucketFault.RESET:
            await wire.reader.read(self._generator.choice([1, 1000, 50_000]))
            wire.reset()
            return
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        body = await wire.reader.readexactly(int(length[1])) if length else b""
        if plan is None:
            # The deletion of several objects has their names in its body.
            fault = self._fault_of(self._plan_of(body), head)
        if fault in _RESPONSES:
            await wire.send(_RESPONSES[fault])
            return
        if fault is BucketFault.STALL:
            await asyncio.sleep(_STALL_SECONDS)
        await self._send(wire, fault, await self._ask(self._rename(plan, head), body))

    async def _send(self, wire: Wire, fault: BucketFault, response: bytes) -> None:
        start = response.find(b"\r\n\r\n") + 4
        if fault is BucketFault.LOST:
            return
        if fault in (BucketFault.CUT, BucketFault.STALL_IN_BODY):
            # Within the body, or within the head of a response without one.
            end = (start + len(response)) // 2 if len(response) > start else start // 2
            await wire.send(response[:end])
            await asyncio.sleep(_STALL_SECONDS if fault is BucketFault.STALL_IN_BODY else 0)
            return
        if fault is BucketFault.TRICKLE:
            size = len(response) // 8 + 1
            for at in range(0, len(response), size):
                await wire.send(response[at : at + size])
                await asyncio.sleep(0.01)
            return
        await wire.send(response)

    async def _ask(self, head: bytes, body: bytes) -> bytes:
        """Return the server's response."""
        port = urlsplit(self._server.url).port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(head[:-2] + b"Connection: close\r\n\r\n" + body)
            return await reader.read(-1)
        finally:
            writer.close()

    def _plan_of(self, data: bytes) -> Plan | None:
        found = _ID.search(data)
        return self._plans.get(int(found[1])) if found else None

    def _fault_of(self, plan: Plan | None, head: bytes) -> BucketFault:
        """Return the fault of a request of this plan: it may have one kind of request, once or again and again."""
        if plan is None or plan.bucket is BucketFault.NONE or head.partition(b" ")[0].decode() != plan.bucket_method:
            return BucketFault.NONE
        if plan.is_reached and plan.is_bucket_mended:
            return BucketFault.NONE
        plan.is_reached = True
        return plan.bucket

    def _rename(self, plan: Plan | None, head: bytes) -> bytes:
        """Return the head of a request for an object that exists, where it is for one that is served to a plan."""
        name = plan.served if plan is not None else ""
        return _SERVED.sub(f"/served/{name}".encode(), head, count=1)


@contextlib.asynccontextmanager
async def run_bucket(plans: dict[int, Plan], generator: random.Random) -> AsyncIterator[CampaignBucket]:
    """Run the server and the relay, with credentials for the gateway in the environment."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.s3_server"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "S3_UPLOAD_PART_MIN_SIZE": "256"},
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        server = S3Server((await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip())
        bucket = CampaignBucket(server, plans, generator)
        await asyncio.to_thread(bucket.clear)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", "test")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
            patch.setattr("gateway.storage.s3._PART_BYTES", _PART_BYTES)
            async with await bucket.start():
                yield bucket
                await bucket.cut_stalled()
    finally:
        process.stdin.close()
        await process.wait()
        # asyncio closes the pipes in a later iteration of the loop.
        await asyncio.sleep(0)

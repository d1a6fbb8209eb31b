"""Runs one case: a gateway, a client and what the action needs, of which one is held until its leg was charged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.filters import FileHead
from gateway.http.headers import Header
from tests.certificates import Certificate
from tests.legs.cases import ACTIONS, BUCKET_CALLS, DISK_CALLS, Case, Party
from tests.peers import OK, RawUpstream, Wire, chunked, read_body, responding, run_gateway, split_response
from tests.s3_server import S3Server
from tests.scenes import HELD_SECONDS, Scene, assert_adds_up
from tests.slow_disk import SlowDisk, evict

#: Of those that read slowly: kernels would take megabytes.
_BUFFER_BYTES = 32_768
_MANY_SECONDS = "50s"


async def run_case(
    case: Case, directory: Path, certificate: Certificate, bucket: S3Server | None, patch: pytest.MonkeyPatch
) -> None:
    """Run a case and assert that its legs add up, and that the slow party's was charged."""
    if case.is_raw:
        patch.setattr("gateway.transfer.lanes.MIN_RAW_BYTES", 1)
    scenario = _Scenario(case, certificate)
    patch.setattr("importlib.metadata.entry_points", lambda group: [_PluginEntry("held", scenario)])
    async with contextlib.AsyncExitStack() as stack:
        await scenario.run(stack, directory, bucket)


class _Scenario:
    def __init__(self, case: Case, certificate: Certificate) -> None:
        self.case = case
        self.scene = Scene()
        self._certificate = certificate
        self._has_held = False

    async def hold(self, party: Party) -> None:
        """Wait until the leg of this party was charged, once, if it is the slow one."""
        if party is self.case.party and not self._has_held:
            self._has_held = True
            await self.scene.hold(self.case.leg)

    async def run(self, stack: contextlib.AsyncExitStack, directory: Path, bucket: S3Server | None) -> None:
        case, scene = self.case, self.scene
        upstream = await stack.enter_async_context(_upstream(self._serve, is_paused=case.is_upstream_tls))
        mirror = await stack.enter_async_context(RawUpstream(responding(OK)))
        disk = None
        if case.party is Party.DISK:
            disk = await stack.enter_async_context(_mounted(directory))
        if case.action == "files":
            await asyncio.to_thread((directory / "file").write_bytes, case.downloaded)
            await asyncio.to_thread(evict, directory / "file")
        store = ""
        if bucket is not None:
            if case.action == "bucket files":
                await asyncio.to_thread(bucket.ask, "/bucket/in/file", "PUT", case.downloaded)
            relay = _BucketRelay(bucket, random.Random(case.seed).choice(BUCKET_CALLS[case.is_stored]), self.hold)
            store = (await stack.enter_async_context(RawUpstream(relay))).url
        origin = f"https://localhost:{upstream.port}" if case.is_upstream_tls else upstream.url
        config = self._config(origin, mirror.url, directory, store)
        scene.gateway = await stack.enter_async_context(run_gateway(config))
        held = (self._hold_slot if case.party is Party.SLOT else contextlib.nullcontext)()
        async with held, self._holding_disk(disk):
            status = await self._request(origin)
        assert status == (201 if case.is_stored else 200)
        line = await scene.gateway.wait_log_line()
        assert_adds_up(line, may_overlap=ACTIONS[case.action].may_overlap)
        legs = line["wait_seconds"]
        assert legs[case.leg] >= HELD_SECONDS, line
        shown = await scene.scrape()
        assert {leg: round(seconds, 6) for leg, seconds in shown.items() if seconds} == pytest.approx(legs, abs=1e-5)

    def _config(self, origin: str, mirror: str, directory: Path, store: str) -> dict[str, Any]:
        case = self.case
        bucket = {"url": "s3://bucket/in", "endpoint": store, "region": "us-east-1"}
        keys = json.dumps(ACTIONS[case.action].keys).replace('"BUCKET"', json.dumps(bucket))
        keys = keys.replace("DIRECTORY", str(directory)).replace("URL/", f"{origin}/")
        route = {"name": "r", "match": {"prefix": "/"}, **json.loads(keys)}
        if case.party in (Party.OBSERVER, Party.TRANSFORM):
            # Before or after the route's own.
            own, at = route.get("filters", []), case.seed % 2
            route["filters"] = [*own[:at], {"held": {}}, *own[at:]]
        slots = {"max_in_flight": 1} if case.party is Party.SLOT else {}
        timeouts = {"connect": _MANY_SECONDS}
        certificate = self._certificate
        tls = {"certificate": str(certificate.path), "key": str(certificate.key)}
        return {
            "lanes": case.lanes,
            **({"tls": tls} if case.is_client_tls else {}),
            "upstreams": {
                "up": {"endpoints": [origin], "timeouts": timeouts, **slots},
                "mirror": {"endpoints": [mirror]},
            },
            "routes": [route],
        }

    async def _request(self, origin: str) -> int:
        """Send the request, receive the response, return its status."""
        case, (head, body) = self.case, self.case.request(origin)
        client = await self._connect()
        if case.party is Party.READER:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a client that does not read
        at = random.Random(case.seed).randrange(len(body)) if body else 0
        sending = asyncio.create_task(self._send(client, head + body[:at], body[at:]))
        if case.party is Party.READER:
            await self.hold(Party.READER)
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]  # see above
        response = await client.read_to_end()
        await sending
        await client.close()
        return split_response(response)[0]

    async def _connect(self) -> Wire:
        sock = socket.socket()
        sock.setblocking(False)
        if self.case.party is Party.READER:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.scene.gateway.port))
        is_tls = self.case.is_client_tls
        tls = {"ssl": self._certificate.client_context(), "server_hostname": "127.0.0.1"} if is_tls else {}
        return Wire(*await asyncio.open_connection(sock=sock, limit=2**20, **tls))  # type: ignore[arg-type]  # two keys

    async def _send(self, client: Wire, *pieces: bytes) -> None:
        for number, piece in enumerate(pieces):
            if number:
                await self.hold(Party.SENDER)
            if piece:
                await client.send(piece)

    async def _serve(self, wire: Wire) -> None:
        """Be the upstream."""
        case = self.case
        if case.is_upstream_tls:
            await self.hold(Party.CONNECT)
            await wire.writer.start_tls(self._certificate.server_context())
        while True:
            head = await wire.read_head()
            await self.hold(Party.UPSTREAM_READER)
            await read_body(wire, head)
            await self.hold(Party.SERVICE)
            first, rest = _response(case)
            await wire.send(first)
            await self.hold(Party.UPSTREAM_SENDER)
            # The client of `split` reads documents, and no more than some of a response.
            await wire.send(rest)
            if case.response == "closed":
                wire.writer.write_eof() if wire.writer.can_write_eof() else await wire.close()
                return

    @contextlib.asynccontextmanager
    async def _hold_slot(self) -> AsyncIterator[None]:
        """Have the only slot of the upstream until the request has waited for it."""

        async def give_back() -> None:
            await self.hold(Party.SLOT)
            await capacity.__aexit__(None, None, None)

        capacity = self.scene.gateway.gateway._resources.upstreams["up"].capacity
        await capacity.__aenter__()
        giving = asyncio.create_task(give_back())
        yield
        await giving

    @contextlib.asynccontextmanager
    async def _holding_disk(self, disk: SlowDisk | None) -> AsyncIterator[None]:
        """Hold a call to the disk until its leg was charged."""
        if disk is None:
            yield
            return

        async def release() -> None:
            await disk.wait_held()
            await self.hold(Party.DISK)
            await disk.release()

        await disk.hold(random.Random(self.case.seed).choice(DISK_CALLS[self.case.is_stored]))
        releasing = asyncio.create_task(release())
        yield
        await releasing


def _response(case: Case) -> tuple[bytes, bytes]:
    """Return a response of the upstream in two pieces."""
    body = case.downloaded
    half = len(body) // 2
    head = b"HTTP/1.1 200 OK\r\n"
    if case.response == "chunked":
        framed = chunked(body[:half], body[half:])
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + framed[:half], framed[half:]
    length = b"Content-Length: %d\r\n" % len(body) if case.response == "sized" else b"Connection: close\r\n"
    return head + length + b"\r\n" + body[:half], body[half:]


@contextlib.asynccontextmanager
async def _upstream(script: Callable[[Wire], Awaitable[None]], *, is_paused: bool) -> AsyncIterator[RawUpstream]:
    async with RawUpstream(script, is_paused=is_paused) as upstream:
        # Before a connection is made.
        upstream._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        yield upstream


@contextlib.asynccontextmanager
async def _mounted(directory: Path) -> AsyncIterator[SlowDisk]:
    disk = SlowDisk(directory)
    try:
        await disk.mount()
    except OSError as exc:
        pytest.skip(str(exc))
    try:
        yield disk
    finally:
        await disk.unmount()


class _BucketRelay:
    """Passes bytes between the gateway and an S3 server; the first request with this method waits."""

    def __init__(self, server: S3Server, method: bytes, hold: Callable[[Party], Awaitable[None]]) -> None:
        self._port = int(server.url.rpartition(":")[2])
        self._method = method
        self._hold = hold

    async def __call__(self, wire: Wire) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        back = asyncio.create_task(self._pass_back(reader, wire))
        try:
            while piece := await wire.reader.read(2**16):
                if piece.startswith(self._method):
                    await self._hold(Party.BUCKET)
                writer.write(piece)
                await writer.drain()
        finally:
            writer.close()
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)

    async def _pass_back(self, reader: asyncio.StreamReader, wire: Wire) -> None:
        while piece := await reader.read(2**16):
            await wire.send(piece)


class _PluginEntry:
    """The entry point of a filter that is slow."""

    def __init__(self, name: str, scenario: _Scenario) -> None:
        self.name = name
        self._scenario = scenario

    def load(self) -> Callable[..., Any]:
        is_transform = self._scenario.case.party is Party.TRANSFORM
        made = _HeldTransform(self._scenario) if is_transform else _HeldObservers(self._scenario)
        return lambda options, context: made


class _HeldTransform:
    def __init__(self, scenario: _Scenario) -> None:
        self._scenario = scenario

    async def transform(self, file: FileHead, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        del file
        async for chunk in chunks:
            await self._scenario.hold(Party.TRANSFORM)
            yield chunk


class _HeldObservers:
    first_bytes = 0

    def __init__(self, scenario: _Scenario) -> None:
        self._scenario = scenario

    def __call__(self, file: FileHead) -> _HeldObserver:
        del file
        return _HeldObserver(self._scenario)


class _HeldObserver:
    def __init__(self, scenario: _Scenario) -> None:
        self._scenario = scenario

    async def feed_data(self, chunk: bytes) -> None:
        del chunk
        await self._scenario.hold(Party.OBSERVER)

    async def finish(self) -> None:
        return

    def close(self) -> None:
        return

    def facts(self) -> Mapping[str, str | int]:
        return {}

    def response_headers(self) -> Sequence[Header]:
        return ()

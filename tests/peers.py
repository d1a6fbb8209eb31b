"""Clients and upstreams for tests: raw bytes over real sockets.

No HTTP library is used, since it could have the same defects as the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Self

import aiohttp

from gateway.config import parse_config
from gateway.server import Gateway

#: Top-level config keys of every gateway in the tests; a test may override them. The fixture `every_lane` sets `lanes`.
DEFAULTS: dict[str, Any] = {}

#: Whether gateways have a kept connection to each endpoint from the start, so that the first request takes the express
#: lane: `make tests EXPRESS=1`. Tests of what only happens on new connections have the marker `new_connection`.
IS_EXPRESS_FORCED = os.environ.get("EXPRESS") == "1"
#: Exchanges by the lane of their response, and those that the express lane handed over, of all gateways in the tests.
exchanges_by_lane: Counter[str] = Counter()

#: The maximum time of one step before a test fails.
TIMEOUT_SECONDS = 20.0
#: Iterations of the event loop until a script knows that its connection is lost: one for the transport, two for tasks.
_LOST_ITERATIONS = 4


class Wire:
    """One end of a TCP connection. It keeps every byte received; each read has a time limit.

    Not by `asyncio.wait_for`: in Python 3.11 it loses a cancellation that comes together with what is waited for, and
    so the limit of a caller, who then waits for ever.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received = bytearray()

    async def send(self, *data: bytes) -> None:
        """Write and flush each piece separately, so that TCP usually sends it in a segment of its own."""
        for piece in data:
            self.writer.write(piece)
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self.writer.drain()

    async def read_some(self) -> bytes:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            data = await self.reader.read(2**16)
        self.received += data
        return data

    async def read_until(self, mark: bytes) -> bytes:
        """Return the bytes up to and including the mark; later bytes stay unread."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            data = await self.reader.readuntil(mark)
        self.received += data
        return data

    async def read_head(self) -> bytes:
        return await self.read_until(b"\r\n\r\n")

    async def read_exactly(self, size: int) -> bytes:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            data = await self.reader.readexactly(size)
        self.received += data
        return data

    async def read_to_end(self) -> bytes:
        """Return the bytes received until the peer closes or resets; after a reset, `was_reset` is true."""
        data = bytearray()
        self.was_reset = False
        try:
            while piece := await self.read_some():
                data += piece
        except ConnectionError:
            self.was_reset = True
        return bytes(data)

    was_reset = False

    async def send_all(self, pieces: Iterable[bytes]) -> int:
        """Send all pieces, or stop when the peer closes the connection; return the number of bytes written."""
        sent = 0
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                await self.send(piece)
                sent += len(piece)
        return sent

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def reset(self) -> None:
        """Close with RST instead of FIN. Over TLS, one that the peer has closed has no socket any more."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Wire], Awaitable[None]]


async def wait_until(holds: Callable[[], object]) -> None:
    """Wait until the condition holds. For states of the gateway that set no event."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not holds():  # noqa: ASYNC110 (no event exists: the gateway counts in plain numbers)
            await asyncio.sleep(0.001)


class RawUpstream:
    """A server that runs a script on each connection and keeps every byte it received.

    With `is_paused` nothing is read before the script starts TLS: asyncio would not pass on what is read already.
    """

    def __init__(self, script: Script, *, is_paused: bool = False) -> None:
        self._script = script
        self._is_paused = is_paused
        self.wires: list[Wire] = []
        self.connected = asyncio.Event()
        self.finished = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for wire in self.wires:
            wire.writer.transport.abort()
        for _ in range(_LOST_ITERATIONS):
            # A script that is cancelled after its connection was reset, and before it runs, leaves an exception of
            # asyncio's that is never retrieved.
            await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        for wire in self.wires:
            # Also retrieves the exception of a connection that was reset: asyncio may report it otherwise, depending on
            # the order in which its objects are collected.
            with contextlib.suppress(ConnectionError):
                await wire.writer.wait_closed()
        for result in results:
            if isinstance(result, AssertionError) and exc is None:
                raise result

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def received(self) -> bytes:
        """Every byte that the first connection received."""
        return bytes(self.wires[0].received) if self.wires else b""

    async def wait_finished(self) -> None:
        """Wait until the script of a connection has ended."""
        await asyncio.wait_for(self.finished.wait(), TIMEOUT_SECONDS)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_paused:
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport
        wire = Wire(reader, writer)
        self.wires.append(wire)
        self.connected.set()
        self._tasks.add(asyncio.create_task(self._run(wire)))

    async def _run(self, wire: Wire) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._script(wire)
        finally:
            self.finished.set()


class RunningGateway:
    """A gateway on free ports in this event loop, and the lines of its access log."""

    def __init__(self, gateway: Gateway, log: list[dict[str, Any]], logged: asyncio.Event) -> None:
        self.gateway = gateway
        self.stats = gateway.stats
        self.log = log
        self._logged = logged

    @property
    def port(self) -> int:
        return self.gateway.address.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ops_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.ops_address.port}"

    async def connect(self) -> Wire:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
        return Wire(reader, writer)

    async def request(self, *request: bytes) -> bytes:
        """Send a request and return every byte received until the gateway closes the connection."""
        client = await self.connect()
        try:
            await client.send_all(request)
            return await client.read_to_end()
        finally:
            await client.close()

    async def wait_log_line(self, count: int = 1) -> dict[str, Any]:
        """Wait for the count-th line of the access log and return it."""

        async def wait() -> None:
            while len(self.log) < count:
                self._logged.clear()
                await self._logged.wait()

        await asyncio.wait_for(wait(), TIMEOUT_SECONDS)
        return self.log[count - 1]


@contextlib.asynccontextmanager
async def run_gateway(config: dict[str, Any]) -> AsyncIterator[RunningGateway]:
    """Run a gateway with this config. At the end, assert that no exchange and no transfer is in flight."""
    config = {"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}, "drain_timeout": "5s", **DEFAULTS, **config}
    log: list[dict[str, Any]] = []
    logged = asyncio.Event()

    def write_log(line: str) -> None:
        log.append(json.loads(line))
        logged.set()

    gateway = Gateway(parse_config(json.dumps(config)), write_log)
    await gateway.start()
    if IS_EXPRESS_FORCED:
        await keep_connections(gateway)
    running = RunningGateway(gateway, log, logged)
    try:
        yield running
    finally:
        await gateway.stop()
        exchanges_by_lane.update(str(line["download_lane"]) for line in log)
        exchanges_by_lane["handed over"] += gateway._handler.express.handed_over.total()
        assert gateway._handler.exchange_count == 0
        for route in gateway.stats.routes.values():
            assert route.in_flight == 0, route.route
            for transfer in route.transfers.values():
                assert transfer.in_flight == 0, route.route


async def keep_connections(gateway: Gateway) -> None:
    """Have a connection to every endpoint kept, as after a request before."""
    for pool in gateway._runtime.upstreams.values():
        client = pool._client
        for state in pool._states:
            with contextlib.suppress(OSError, aiohttp.ClientError):
                request = client._pool_request(state.endpoint)
                (await client._connector.take(request, client._connect_seconds)).release()


def forward_config(upstream: str | list[str], **route: Any) -> dict[str, Any]:
    """Return a config with one forward route that matches every request. `upstream_keys` go to the upstream."""
    endpoints = [upstream] if isinstance(upstream, str) else upstream
    upstream_keys = route.pop("upstream_keys", {})
    top = route.pop("top", {})
    forward = {"upstream": "up", **route.pop("forward", {})}
    return {
        **top,
        "upstreams": {"up": {"endpoints": endpoints, **upstream_keys}},
        "routes": [{"name": "r", "match": {"prefix": "/"}, "forward": forward, **route}],
    }


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def responding(response: bytes) -> Script:
    """Return a script that reads one whole request after another and sends this response to each."""

    async def script(wire: Wire) -> None:
        while True:
            await read_request(wire)
            await wire.send(response)

    return script


def responding_in_halves(first: bytes, release: asyncio.Event, second: bytes) -> Script:
    """Return a script that responds to requests without a body; the second half of each body waits for `release`."""

    async def script(wire: Wire) -> None:
        while True:
            await wire.read_head()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(first + second), first))
            await release.wait()
            await wire.send(second)

    return script


async def read_request(wire: Wire) -> tuple[bytes, bytes]:
    """Read one whole request and return its head and its body (chunks joined)."""
    head = await wire.read_head()
    return head, await read_body(wire, head)


async def read_body(wire: Wire, head: bytes) -> bytes:
    """Read the body of the request with this head and return it (chunks joined)."""
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        body = bytearray()
        while True:
            size = int(await wire.read_until(b"\r\n"), 16)
            data = await wire.read_exactly(size + 2)
            if not size:
                return bytes(body)
            body += data[:-2]
    if b"content-length:" in lower:
        length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        return await wire.read_exactly(length)
    return b""


def split_response(response: bytes) -> tuple[int, dict[str, str], bytes]:
    """Return the status, the headers by lower-case name, and the bytes after the head."""
    head, _, body = response.partition(b"\r\n\r\n")
    line, *headers = head.decode("latin-1").split("\r\n")
    pairs = [header.partition(": ") for header in headers]
    return int(line.split()[1]), {name.lower(): value for name, _, value in pairs}, body


def problem_of(response: bytes) -> dict[str, Any]:
    """Return the problem document of a response."""
    status, headers, body = split_response(response)
    assert headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = json.loads(body)
    assert document["status"] == status
    return document


def form(
    *parts: tuple[str, bytes], boundary: bytes = b"XBOUNDARYX", preamble: bytes = b"", epilogue: bytes = b""
) -> bytes:
    """Return a multipart/form-data body. A part is (disposition parameters, data)."""
    body = bytearray(preamble)
    for parameters, data in parts:
        body += b"--" + boundary + b"\r\nContent-Disposition: form-data; " + parameters.encode() + b"\r\n"
        body += b"Content-Type: application/octet-stream\r\n\r\n" if "filename" in parameters else b"\r\n"
        body += data + b"\r\n"
    return bytes(body + b"--" + boundary + b"--\r\n" + epilogue)


def post(body: bytes, *, target: str = "/", headers: str = "", content_type: str = "") -> bytes:
    """Return a whole POST request with Content-Length and `Connection: close`."""
    kind = content_type or "multipart/form-data; boundary=XBOUNDARYX"
    head = f"POST {target} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Type: {kind}\r\n{headers}"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(*pieces: bytes) -> bytes:
    """Return a body with chunked framing: these chunks and the final chunk."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"

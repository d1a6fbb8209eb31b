"""The other sides of the wire: raw bytes over real sockets, never an HTTP library that shares our blind spots."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Self

from gateway.config import parse_config
from gateway.server import Gateway

#: What every gateway of a test is configured with unless it says otherwise; `every_lane` changes it.
DEFAULTS: dict[str, Any] = {}

#: How long any step may take before a test fails; nothing waits this long when all is well.
PATIENCE_SECONDS = 10.0


class Wire:
    """One end of a TCP connection: what was received is kept, what is expected is awaited."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received = bytearray()

    async def send(self, *data: bytes) -> None:
        """Send each piece in a segment of its own, as far as TCP lets us."""
        for piece in data:
            self.writer.write(piece)
            await asyncio.wait_for(self.writer.drain(), PATIENCE_SECONDS)

    async def read_some(self) -> bytes:
        data = await asyncio.wait_for(self.reader.read(2**16), PATIENCE_SECONDS)
        self.received += data
        return data

    async def read_until(self, mark: bytes) -> bytes:
        """Return what has come up to and including the mark; what comes behind stays unread."""
        data = await asyncio.wait_for(self.reader.readuntil(mark), PATIENCE_SECONDS)
        self.received += data
        return data

    async def read_head(self) -> bytes:
        return await self.read_until(b"\r\n\r\n")

    async def read_exactly(self, size: int) -> bytes:
        data = await asyncio.wait_for(self.reader.readexactly(size), PATIENCE_SECONDS)
        self.received += data
        return data

    async def read_to_end(self) -> bytes:
        """Return what comes until the peer closes; a reset ends it too and shows in `was_reset`."""
        data = bytearray()
        self.was_reset = False
        try:
            while piece := await self.read_some():
                data += piece
        except ConnectionError:
            self.was_reset = True
        return bytes(data)

    was_reset = False

    async def drain_source(self, pieces: Iterable[bytes]) -> int:
        """Send until done or the peer is gone; return how many bytes went out."""
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
        """Close with RST instead of FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Wire], Awaitable[None]]


async def until(holds: Callable[[], object]) -> None:
    """Wait until a state of the gateway holds that announces itself by no event."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():  # noqa: ASYNC110 (there is no event: the gateway counts in plain numbers)
            await asyncio.sleep(0.001)


class RawUpstream:
    """A server that follows a script on each connection and keeps every byte it got."""

    def __init__(self, script: Script) -> None:
        self._script = script
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
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        # Aborted transports close their sockets in the next turn.
        await asyncio.sleep(0)
        for result in results:
            if isinstance(result, AssertionError) and exc is None:
                raise result

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def received(self) -> bytes:
        """Everything the first connection got."""
        return bytes(self.wires[0].received) if self.wires else b""

    async def wait_finished(self) -> None:
        """Wait until the script of a connection has run to its end."""
        await asyncio.wait_for(self.finished.wait(), PATIENCE_SECONDS)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
    """A gateway on free ports in this loop, with its access log at hand."""

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

    async def ask(self, *request: bytes) -> bytes:
        """Send a request and return everything until the gateway closes."""
        client = await self.connect()
        try:
            await client.drain_source(request)
            return await client.read_to_end()
        finally:
            await client.close()

    async def last_line(self, count: int = 1) -> dict[str, Any]:
        """Wait for the count-th line of the access log and return it."""

        async def wait() -> None:
            while len(self.log) < count:
                self._logged.clear()
                await self._logged.wait()

        await asyncio.wait_for(wait(), PATIENCE_SECONDS)
        return self.log[count - 1]


@contextlib.asynccontextmanager
async def run_gateway(config: dict[str, Any]) -> AsyncIterator[RunningGateway]:
    """Run a gateway from a config as a plain dict; on leaving, assert that nothing is left over."""
    config = {"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}, "drain_timeout": "5s", **DEFAULTS, **config}
    log: list[dict[str, Any]] = []
    logged = asyncio.Event()

    def note(line: str) -> None:
        log.append(json.loads(line))
        logged.set()

    gateway = Gateway(parse_config(json.dumps(config)), note)
    await gateway.start()
    running = RunningGateway(gateway, log, logged)
    try:
        yield running
    finally:
        await gateway.stop()
        assert gateway._in_flight.in_flight == 0
        for route in gateway.stats.routes.values():
            assert route.in_flight == 0, route.route
            for transfer in route.transfers.values():
                assert transfer.in_flight == 0, route.route


def forward_config(upstream: str | list[str], **route: Any) -> dict[str, Any]:
    """Return a config with one forward route for everything. `upstream_keys` go to the upstream."""
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
    """Return a script that reads a head and as much body as it declares, then answers, again and again."""

    async def script(wire: Wire) -> None:
        while True:
            await read_request(wire)
            await wire.send(response)

    return script


async def read_request(wire: Wire) -> tuple[bytes, bytes]:
    """Read one whole request and return its head and its body (chunks joined)."""
    head = await wire.read_head()
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        body = bytearray()
        while True:
            size = int(await wire.read_until(b"\r\n"), 16)
            data = await wire.read_exactly(size + 2)
            if not size:
                return head, bytes(body)
            body += data[:-2]
    if b"content-length:" in lower:
        length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        return head, await wire.read_exactly(length)
    return head, b""


def split_response(response: bytes) -> tuple[int, dict[str, str], bytes]:
    """Take an answer apart: status, fields in lower case, and what follows the head."""
    head, _, body = response.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    pairs = [field.partition(": ") for field in fields]
    return int(line.split()[1]), {name.lower(): value for name, _, value in pairs}, body


def problem_of(response: bytes) -> dict[str, Any]:
    """Return the problem document of an answer."""
    status, fields, body = split_response(response)
    assert fields["content-type"] == "application/problem+json"
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


def post(body: bytes, *, target: str = "/", fields: str = "", content_type: str = "") -> bytes:
    """Return a whole POST with a Content-Length, on a connection that closes."""
    kind = content_type or "multipart/form-data; boundary=XBOUNDARYX"
    head = f"POST {target} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Type: {kind}\r\n{fields}"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(*pieces: bytes) -> bytes:
    """Return a chunked body of these chunks, with its end."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"

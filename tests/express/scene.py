"""What the tests of hand-overs share: warmed connections, and an upstream whose responses are held."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.express import HandOver
from tests.peers import OK, RawUpstream, RunningGateway, Wire, forward_config, read_request, run_gateway, wait_until

GET = b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 4\r\n\r\nbody"
PUT = b"PUT / HTTP/1.1\r\nHost: gw\r\nContent-Length: 4\r\n\r\nbody"

#: Serves one request, the head of which is given, on a connection.
Serve = Callable[[Wire], Awaitable[None]]


async def serve_ok(wire: Wire) -> None:
    """Respond at once."""
    await wire.send(OK)


@dataclass
class Scene:
    """A gateway with an upstream, and a client whose connection is kept."""

    gateway: RunningGateway
    upstream: RawUpstream
    client: Wire
    #: What is done with the next request; those after it get `serve_ok`.
    next_one: list[Serve]
    #: Heads and bodies, in order of arrival.
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def lane(self) -> Any:
        """The express lane."""
        return self.gateway.gateway._handler.express

    @property
    def taken(self) -> int:
        """Slots that are taken."""
        return sum(pool.capacity.taken for pool in self.gateway.gateway._runtime.upstreams.values())

    async def reconnect(self) -> None:
        """Have another connection of the client."""
        await self.client.close()
        self.client = await self.gateway.connect()

    async def warm(self) -> None:
        """Have the connections of client and upstream kept, and nothing under way."""
        count = len(self.gateway.log) + 1
        await self.client.send(GET)
        await read_ok(self.client)
        await self.gateway.wait_log_line(count)
        await self.settle()
        self.arrived.clear()

    async def settle(self) -> None:
        """Wait until no exchange is under way, and every connection waits for a request."""
        traffic = self.gateway.gateway._traffic
        await wait_until(lambda: not self.gateway.gateway.exchange_count)
        await wait_until(lambda: all(getattr(each, "is_waiting", True) for each in traffic.connections))

    async def send(self, request: bytes, serve: Serve) -> None:
        """Send a request that the upstream serves this way, and wait until it has arrived there."""
        self.next_one.append(serve)
        self.arrived.clear()
        await self.client.send(request)
        async with asyncio.timeout(10):
            await self.arrived.wait()

    async def held(self, count: int) -> None:
        """Wait until the gateway holds at least `count` bytes of a request whose body is awaited."""
        connections = self.gateway.gateway._traffic.connections
        await wait_until(lambda: any(len(getattr(each, "_held", b"")) >= count for each in connections))

    async def handed_over(self, reason: HandOver) -> None:
        """Wait until the lane has handed an exchange over."""
        await wait_until(lambda: self.lane.handed_over[reason])
        assert set(self.lane.handed_over.elements()) == {reason}

    async def last_line(self) -> dict[str, Any]:
        """Return the last line of the log, once every exchange has ended."""
        await self.settle()
        return self.gateway.log[-1]

    async def goes_on(self) -> None:
        """Assert that nothing is left of what was, and that the next exchange takes the lane."""
        await self.warm()
        for _ in range(20):
            await self.warm()
            if self.gateway.log[-1]["download_lane"] == "express":
                break
            # Handed over, where the machine held it up for too long.
            assert self.lane.handed_over[HandOver.SLOW]
        else:
            raise AssertionError("no exchange takes the express lane")
        assert self.taken == 0
        assert not self.lane.under_way


async def read_ok(client: Wire) -> bytes:
    """Read one response of the upstream, which has the body `ok`; return its head."""
    head = await client.read_head()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
    assert await client.read_exactly(2) == b"ok"
    return head


@contextlib.asynccontextmanager
async def run_scene(*, slow_seconds: float = 30.0, hold_seconds: float = 30.0, **route: Any) -> AsyncIterator[Scene]:
    """Run a gateway whose connections are warm; `route` as for `forward_config`.

    After `slow_seconds` an exchange is handed over: by default later than a loaded machine holds one up.
    `hold_seconds` is how long the body of a request is awaited.
    """
    next_one: list[Serve] = []
    scene: Scene

    async def script(wire: Wire) -> None:
        while True:
            request = await read_request(wire)
            scene.requests.append(request)
            serve = next_one.pop(0) if next_one else serve_ok
            scene.arrived.set()
            await serve(wire)

    async with contextlib.AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("gateway.express.lane._SLOW_SECONDS", slow_seconds)
        patch.setattr("gateway.aiohttp_seam.server._HOLD_SECONDS", hold_seconds)
        upstream = await stack.enter_async_context(RawUpstream(script))
        async with run_gateway(forward_config(upstream.url, **route)) as gateway:
            client = await gateway.connect()
            scene = Scene(gateway, upstream, client, next_one)
            try:
                await scene.warm()
                yield scene
            finally:
                await scene.client.close()

"""The limits of a gateway with several workers in one event loop: a supervisor's, and those of each worker.

They are linked by the channel of the processes, or by queues in memory. Tests use both, which verifies the latter.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import pickle
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

from gateway.config import Config
from gateway.config.load import parse_config
from gateway.observe.stats import Stats, UpstreamStats
from gateway.sharing import Health, SharedLimits, ToWorker
from gateway.upstream.state import UpstreamState
from gateway.workers.channel import Channel, Kind
from gateway.workers.limits import GatewayLimits

LinkKind = Literal["memory", "channel"]


class WorkerLimits:
    """One worker: its shared limits, and the state of the upstream `up`."""

    def __init__(self, number: int, limits: SharedLimits) -> None:
        self.number = number
        self.limits = limits
        self.stats = UpstreamStats("up")
        self.upstream = UpstreamState(self.stats, limits)
        self.send: Callable[[Kind, object], None]
        self.cut: Callable[[], None]

    def configure(self, config: Config) -> None:
        upstream = config.upstreams["up"]
        self.upstream.configure(upstream, self.upstream.endpoints(upstream.endpoints))


class LinkedLimits:
    """The supervisor's limits, and the workers that are linked to it."""

    def __init__(self, kind: LinkKind, **keys: Any) -> None:
        self._kind = kind
        self._numbers = itertools.count(1)
        self.workers: dict[int, WorkerLimits] = {}
        self.config = config_of(**keys)
        self.stats = Stats([], self.config.upstreams)
        self.limits = GatewayLimits[int](self.stats, self._send, self._send_health)
        self.limits.configure(self.config)
        #: Messages sent, both ways.
        self.message_count = 0

    async def add(self) -> WorkerLimits:
        """Start a worker."""
        number = next(self._numbers)
        opener = self._open_memory if self._kind == "memory" else self._open_channel
        worker = await opener(number)
        self.workers[number] = worker
        self.limits.add(number)
        worker.configure(self.config)
        await settle()
        return worker

    async def kill(self, worker: WorkerLimits) -> None:
        """End a worker: what it has not sent is lost."""
        worker.cut()
        await settle()
        del self.workers[worker.number]
        self.limits.remove(worker.number)
        await settle()

    async def reload(self, **keys: Any) -> None:
        """Apply another config."""
        self.config = config_of(**keys)
        self.limits.configure(self.config, list(self.workers))
        for worker in self.workers.values():
            worker.configure(self.config)
        await settle()

    async def close(self) -> None:
        for worker in list(self.workers.values()):
            worker.upstream.close()
            worker.cut()
        await self.limits.close()
        await settle()

    def _send(self, number: int, messages: list[ToWorker]) -> None:
        self.message_count += len(messages)
        if number in self.workers:
            self.workers[number].send(Kind.LEASE_GRANT, messages)

    def _send_health(self, number: int, health: Health) -> None:
        if number in self.workers:
            self.workers[number].send(Kind.HEALTH, health)

    def _receive(self, number: int, messages: list[Any]) -> None:
        self.message_count += len(messages)
        self.limits.receive(number, messages)

    async def _open_memory(self, number: int) -> WorkerLimits:
        loop = asyncio.get_running_loop()
        is_open = True

        def deliver(receive: Callable[[Any], None], content: bytes) -> None:
            if is_open:
                receive(pickle.loads(content))

        def to_supervisor(messages: list[Any]) -> None:
            loop.call_soon(deliver, lambda content: self._receive(number, content), pickle.dumps(messages))

        def to_worker(kind: Kind, content: object) -> None:
            receive = limits.receive_health if kind is Kind.HEALTH else limits.receive
            loop.call_soon(deliver, receive, pickle.dumps(content))

        def cut() -> None:
            nonlocal is_open
            is_open = False

        limits = SharedLimits(to_supervisor)
        worker = WorkerLimits(number, limits)
        worker.send, worker.cut = to_worker, cut
        return worker

    async def _open_channel(self, number: int) -> WorkerLimits:
        ours, theirs = socket.socketpair()
        supervisor = await Channel.open(
            ours, {Kind.LEASE_REQUEST: lambda messages: self._receive(number, messages)}, lambda: None
        )
        handlers: dict[Kind, Callable[[Any], None]] = {}
        channel = await Channel.open(theirs, handlers, lambda: None)
        limits = SharedLimits(lambda messages: channel.send(Kind.LEASE_REQUEST, messages))
        handlers |= {Kind.LEASE_GRANT: limits.receive, Kind.HEALTH: limits.receive_health}
        worker = WorkerLimits(number, limits)

        def cut() -> None:
            channel.abort()
            supervisor.abort()

        worker.send, worker.cut = supervisor.send, cut
        return worker


def config_of(**keys: Any) -> Config:
    document = {
        "listen": "127.0.0.1:0",
        "ops": {"listen": "127.0.0.1:0"},
        "upstreams": {"up": {"endpoints": ["http://127.0.0.1:1"], "queue_timeout": "off", **keys}},
        "routes": [{"name": "r", "match": {"prefix": "/"}, "forward": {"upstream": "up"}}],
    }
    return parse_config(json.dumps(document))


async def settle() -> None:
    """Wait until what was sent has arrived, and what follows from it."""
    for _ in range(30):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def linked(kind: LinkKind, count: int, **keys: Any) -> AsyncIterator[tuple[LinkedLimits, list[WorkerLimits]]]:
    """Run this many workers; `keys` are those of the upstream."""
    gateway = LinkedLimits(kind, **keys)
    try:
        yield gateway, [await gateway.add() for _ in range(count)]
    finally:
        await gateway.close()

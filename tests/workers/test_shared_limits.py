"""Limits over all workers, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import make_certificate
from tests.peers import TIMEOUT_SECONDS, RawUpstream, Wire, form, forward_config, read_request, wait_until
from tests.workers.processes import Processes, run_processes

pytestmark = pytest.mark.slow
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CLOSING = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def get(path: str, *, is_kept: bool = False) -> bytes:
    return f"GET /{path} HTTP/1.1\r\nHost: gw\r\n{'' if is_kept else 'Connection: close'}\r\n\r\n".replace(
        "\r\n\r\n\r\n", "\r\n\r\n"
    ).encode()


class HoldingUpstream(RawUpstream):
    """An upstream that holds each request until it is released, and counts those it has at once."""

    def __init__(self) -> None:
        super().__init__(self._serve_requests)
        #: The paths of all requests, in order of arrival.
        self.paths: list[str] = []
        #: The connections with a request that has no response yet, by path.
        self.held: dict[str, Wire] = {}
        self.most = 0
        self.is_holding = True
        self._releases: dict[str, asyncio.Event] = {}

    def release(self, *paths: str) -> None:
        for path in paths:
            self._releases[path].set()

    def release_all(self) -> None:
        self.is_holding = False
        self.release(*self._releases)

    async def _serve_requests(self, wire: Wire) -> None:
        while True:
            head, _ = await read_request(wire)
            path = head.split()[1].decode().lstrip("/")
            self.paths.append(path)
            self.held[path] = wire
            # A connection that its peer has closed, which this loop has not noticed yet, has no exchange any more.
            self.most = max(self.most, sum(not has_ended(each) for each in self.held.values()))
            release = self._releases[path] = asyncio.Event()
            try:
                if self.is_holding:
                    await self._wait(release, wire)
            finally:
                del self.held[path]
            await wire.send(OK)

    async def _wait(self, release: asyncio.Event, wire: Wire) -> None:
        """Wait for the release, or for the end of the connection."""
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(release.wait()), group.create_task(wire.read_some())]
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if waits[1] in done:
            raise ConnectionResetError


def has_ended(wire: Wire) -> bool:
    """Return whether the peer has closed a connection, by what the kernel has received."""
    transport = wire.writer.transport
    if transport.is_closing():
        return True
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as sock:
        try:
            return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


def worker_of(gateway: Processes, port: int, peer_port: int) -> int:
    """Return the process id of the worker with a connection: from its own port, to that of its peer."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    wanted = [f"0100007F:{port:04X}", f"0100007F:{peer_port:04X}"]
    inode = next(row[9] for row in rows if row[1:3] == wanted)
    for pid in gateway.workers:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(descriptor) == f"socket:[{inode}]":
                    return pid
    raise AssertionError(f"no worker has the connection from port {port}")


def sender_of(gateway: Processes, upstream: HoldingUpstream, path: str) -> int:
    """Return the process id of the worker that has sent a request."""
    return worker_of(gateway, upstream.held[path].writer.get_extra_info("peername")[1], upstream.port)


async def queue_length(gateway: Processes) -> int:
    _, text = await gateway.ops("/metrics")
    (line,) = [line for line in text.splitlines() if line.startswith("gateway_upstream_queue_length{")]
    return int(float(line.split()[-1]))


async def wait_queue(gateway: Processes, length: int) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while await queue_length(gateway) != length:  # noqa: ASYNC110 (a number of another process)
            await asyncio.sleep(0.01)


def config_of(upstream: str | list[str], **keys: Any) -> dict[str, Any]:
    workers = keys.pop("workers", 4)
    return {"workers": workers, "drain_timeout": "1s", **forward_config(upstream, **keys)}


@contextlib.asynccontextmanager
async def holding(directory: Path, upstream_keys: dict[str, Any]) -> AsyncIterator[tuple[HoldingUpstream, Processes]]:
    """Run four workers in front of an upstream that holds its requests."""
    async with HoldingUpstream() as upstream:
        config = config_of(upstream.url, upstream_keys=upstream_keys)
        async with run_processes(directory, config) as gateway:
            await gateway.wait_started()
            yield upstream, gateway


async def kept_connections(gateway: Processes, count: int) -> dict[int, Wire]:
    """Return a kept connection to each of `count` workers, by process id."""
    found: dict[int, Wire] = {}
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while len(found) < count:
            client = await gateway.connect()
            await client.send(get("which", is_kept=True))
            await client.read_until(b"ok")
            pid = worker_of(gateway, gateway.port, client.writer.get_extra_info("sockname")[1])
            if pid in found:
                await client.close()
            else:
                found[pid] = client
    return found


async def test_upstream_never_sees_more_exchanges_than_it_may_also_while_workers_are_killed(tmp_path: Path) -> None:
    keys = {"max_in_flight": 3, "max_queued": 1000, "queue_timeout": "1m"}
    generator = random.Random(3)
    statuses: list[bytes] = []

    async def ask(gateway: Processes, number: int) -> None:
        response = b""
        with contextlib.suppress(OSError, TimeoutError):
            # Some clients leave before the response, from the queue or later.
            async with asyncio.timeout(0.1 if number in range(0, 200, 7) else None):
                response = await gateway.request(get(str(number)))
        statuses.append(response[:12])

    async with (
        HoldingUpstream() as upstream,
        run_processes(tmp_path, config_of(upstream.url, upstream_keys=keys)) as gateway,
    ):
        await gateway.wait_started()
        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(ask(gateway, number))
            for step in range(200):
                await wait_until(lambda: upstream.held or len(statuses) == 200)
                if step % 40 == 20:
                    os.kill(generator.choice(gateway.workers), signal.SIGKILL)
                if upstream.held:
                    upstream.release(generator.choice(list(upstream.held)))
                await asyncio.sleep(0.002)
            upstream.release_all()
        assert upstream.most == 3
        # Each worker that is killed cuts the clients that wait there.
        assert statuses.count(b"HTTP/1.1 200") > 40
        # No slot is lost.
        upstream.is_holding = True
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(ask(gateway, 1000 + number))
            await wait_until(lambda: len(upstream.held) == 3)
            await wait_queue(gateway, 1)
            upstream.release_all()
        await wait_queue(gateway, 0)


async def test_exchanges_get_slots_in_order_of_arrival_over_all_workers(tmp_path: Path) -> None:
    keys = {"max_in_flight": 1, "queue_timeout": "1m"}
    async with holding(tmp_path, keys) as (upstream, gateway):
        clients = [await gateway.connect() for _ in range(12)]
        for number, client in enumerate(clients):
            await client.send(get(str(number)))
            await wait_until(lambda: upstream.held)
            await wait_queue(gateway, number)
        senders = set()
        for number, client in enumerate(clients):
            await wait_until(lambda: str(number) in upstream.held)  # noqa: B023 (called at once)
            senders.add(sender_of(gateway, upstream, str(number)))
            upstream.release(str(number))
            assert (await client.read_to_end()).endswith(b"ok")
            await client.close()
        assert upstream.paths == [str(number) for number in range(12)]
        assert upstream.most == 1
        assert len(senders) > 1


async def test_slots_of_a_killed_worker_are_free_at_once(tmp_path: Path) -> None:
    keys = {"max_in_flight": 2, "queue_timeout": "1m"}
    async with (
        HoldingUpstream() as upstream,
        run_processes(tmp_path, config_of(upstream.url, upstream_keys=keys)) as gateway,
    ):
        await gateway.wait_started()
        clients = [await gateway.connect() for _ in range(10)]
        for number, client in enumerate(clients):
            await client.send(get(str(number)))
        await wait_until(lambda: len(upstream.held) == 2)
        await wait_queue(gateway, 8)
        first = next(iter(upstream.held))
        os.kill(sender_of(gateway, upstream, first), signal.SIGKILL)
        await wait_until(lambda: first not in upstream.held and len(upstream.held) == 2)
        assert upstream.most == 2
        upstream.release_all()
        for client in clients:
            await client.read_to_end()
            await client.close()
        assert upstream.most == 2


async def test_reload_changes_the_slots_of_all_workers(tmp_path: Path) -> None:
    keys = {"max_in_flight": 1, "queue_timeout": "1m"}
    async with (
        HoldingUpstream() as upstream,
        run_processes(tmp_path, config_of(upstream.url, upstream_keys=keys)) as gateway,
    ):
        await gateway.wait_started()
        clients = [await gateway.connect() for _ in range(6)]
        for number, client in enumerate(clients):
            await client.send(get(str(number)))
        await wait_queue(gateway, 5)
        endpoints = {"endpoints": [upstream.url]}
        for count, slots in enumerate((3, 1), start=1):
            gateway.write_config(upstreams={"up": {**endpoints, **keys, "max_in_flight": slots}})
            gateway.hang_up()
            await gateway.wait_log("the config was replaced", count)
            await wait_queue(gateway, 3)
            await wait_until(lambda: len(upstream.held) == 3)
        upstream.release(*list(upstream.held)[:2])
        await wait_until(lambda: len(upstream.held) == 1)
        assert await queue_length(gateway) == 3
        # Without a limit.
        gateway.write_config(upstreams={"up": endpoints})
        gateway.hang_up()
        await gateway.wait_log("the config was replaced", 3)
        await wait_until(lambda: len(upstream.held) == 4)
        upstream.release_all()
        for client in clients:
            assert (await client.read_to_end()).endswith(b"ok")
            await client.close()


async def test_connections_are_limited_over_all_workers(tmp_path: Path) -> None:
    async with HoldingUpstream() as upstream:
        config = config_of(upstream.url, workers=2, top={"max_connections": 3})
        async with run_processes(tmp_path, config) as gateway:
            await gateway.wait_started()
            clients = [await gateway.connect() for _ in range(6)]
            for number, client in enumerate(clients):
                await client.send(get(str(number)))
            for count in range(6, 0, -1):
                await wait_until(lambda: len(upstream.held) == min(count, 3))  # noqa: B023 (called at once)
                path = next(iter(upstream.held))
                upstream.release(path)
                # Not for a lower number: the next request may be here at once.
                await wait_until(lambda: path not in upstream.held)  # noqa: B023 (called at once)
            assert upstream.most == 3
            for client in clients:
                assert (await client.read_to_end()).endswith(b"ok")
                await client.close()


async def test_clients_that_stall_in_their_tls_handshakes_hold_no_places_of_any_worker(tmp_path: Path) -> None:
    """Each held one for 10 s: clients after them in the queue waited for 40 s here."""
    certificate = await asyncio.to_thread(make_certificate, tmp_path)
    tls = {"certificate": str(certificate.path), "key": str(certificate.key)}
    async with HoldingUpstream() as upstream:
        upstream.is_holding = False
        config = config_of(upstream.url, workers=2, top={"max_connections": 2, "tls": tls})
        async with run_processes(tmp_path, config) as gateway:
            await gateway.wait_started()
            stalled = [await gateway.connect() for _ in range(8)]
            async with asyncio.timeout(TIMEOUT_SECONDS):
                honest = Wire(
                    *await asyncio.open_connection("127.0.0.1", gateway.port, ssl=certificate.client_context())
                )
            await honest.send(get("honest"))
            assert (await honest.read_to_end()).endswith(b"ok")
            for client in (*stalled, honest):
                await client.close()


async def test_rate_of_a_route_holds_over_all_workers(tmp_path: Path) -> None:
    async def respond(wire: Wire) -> None:
        while True:
            await read_request(wire)
            await wire.send(OK)

    body = form(('name="f"; filename="f"', b"x" * 600_000))
    head = (
        "POST / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary=XBOUNDARYX\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    async with RawUpstream(respond) as upstream:
        config = config_of(upstream.url, workers=2, filters=[{"throttle": {"rate": "1MB"}}])
        async with run_processes(tmp_path, config) as gateway:
            await gateway.wait_started()
            clients = (await kept_connections(gateway, 2)).values()
            began = time.monotonic()
            await asyncio.gather(*(client.send(head.encode() + body) for client in clients))
            responses = await asyncio.gather(*(client.read_to_end() for client in clients))
            # Each worker by itself: 0.35 s. Never less than 0.85 s for both together, with the burst and two leases.
            assert time.monotonic() - began > 0.8
            assert all(response.endswith(b"ok") for response in responses)
            for client in clients:
                await client.close()


async def test_endpoints_are_checked_once_for_all_workers(tmp_path: Path) -> None:
    checks: list[Wire] = []
    is_up = asyncio.Event()

    async def respond(wire: Wire) -> None:
        head, _ = await read_request(wire)
        if head.startswith(b"GET /healthz"):
            checks.append(wire)
            await is_up.wait()
            await wire.send(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
        else:
            await wire.send(CLOSING)

    keys = {"health": {"path": "/healthz", "interval": "1h", "timeout": "1m", "fails": 1}}
    async with RawUpstream(respond) as upstream:
        async with run_processes(tmp_path, config_of(upstream.url, workers=2, upstream_keys=keys)) as gateway:
            await gateway.wait_started()
            for client in (await kept_connections(gateway, 2)).values():
                await client.close()
            await wait_until(lambda: checks)
            is_up.set()
            line = await gateway.wait_log("is down: 1 check failed: status 503")
            assert line["event"] == "endpoint_down"
            _, text = await gateway.ops("/metrics")
            assert f'gateway_upstream_endpoint_up{{endpoint="{upstream.url}",upstream="up"}} 0' in text
            assert len(checks) == 1
    assert len([line for line in gateway.log if line["event"] == "endpoint_down"]) == 1


async def test_endpoint_whose_requests_fail_in_several_workers_is_ejected_in_all(tmp_path: Path) -> None:
    async def fail(wire: Wire) -> None:
        while True:
            await read_request(wire)
            await wire.send(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno")

    async def respond(wire: Wire) -> None:
        while True:
            await read_request(wire)
            await wire.send(OK)

    post = b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 2\r\n\r\nhi"
    async with RawUpstream(fail) as bad, RawUpstream(respond) as good:
        config = config_of([good.url], workers=2)
        async with run_processes(tmp_path, config) as gateway:
            await gateway.wait_started()
            clients = list((await kept_connections(gateway, 2)).values())
            ejection = {"failures": 4, "duration": "1h"}
            gateway.write_config(upstreams={"up": {"endpoints": [bad.url, good.url], "ejection": ejection}})
            gateway.hang_up()
            await gateway.wait_log("the config was replaced")
            # Two failures in each of two workers, in turn with the other endpoint.
            for _ in range(4):
                for client in clients:
                    await client.send(post)
                    await client.read_head()
                    await client.read_exactly(2)
            line = await gateway.wait_log("is ejected for 3600 s: 4 requests in a row failed, the last with status 503")
            assert line["endpoint"] == bad.url
            for client in clients:
                await wait_ejected(client, post)
                for _ in range(4):
                    await client.send(post)
                    assert b" 200 " in await client.read_head()
                    await client.read_exactly(2)
                await client.close()
            _, text = await gateway.ops("/metrics")
            assert f'gateway_upstream_ejections_total{{endpoint="{bad.url}",upstream="up"}} 1' in text
    assert len([line for line in gateway.log if line["event"] == "endpoint_ejected"]) == 1


async def wait_ejected(client: Wire, post: bytes) -> None:
    """Wait until a worker has heard of an ejection: two responses in a row come from the other endpoint."""
    in_a_row = 0
    while in_a_row < 2:
        await client.send(post)
        in_a_row = in_a_row + 1 if b" 200 " in await client.read_head() else 0
        await client.read_exactly(2)

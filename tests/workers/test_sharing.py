"""How connections are shared between workers, and that none is refused or lost while workers come and go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import make_certificate
from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    Wire,
    forward_config,
    responding,
    split_response,
    wait_until,
)
from tests.workers.processes import Processes, run_processes

GET = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
GIB = 2**30
CONNECTIONS = re.compile(r"^gateway_connections{.*} (.*)$", re.MULTILINE)
#: Sends `count` uploads of `size` bytes at once, each from a thread; reports each local port and each response.
SENDER = """
import socket, sys, threading
port, count, size = map(int, sys.argv[1:])
piece = memoryview(bytes(2**20))
def send(sock):
    sock.sendall(b"PUT / HTTP/1.1\\r\\nHost: gw\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n" % size)
    for _ in range(size // len(piece)):
        sock.sendall(piece)
    print("done", sock.recv(100).split(b"\\r\\n")[0].decode(), flush=True)
socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
threads = [threading.Thread(target=send, args=(sock,)) for sock in socks]
print("ports", *(sock.getsockname()[1] for sock in socks), flush=True)
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
#: Discards uploads, and responds to each when it has all of it.
DISCARDER = """
import socket, sys, threading
listener = socket.socket(fileno=int(sys.argv[1]))
def discard(sock):
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        head += sock.recv(1)
    left = int(head.lower().split(b"content-length:")[1].split()[0])
    memory = bytearray(2**20)
    while left:
        left -= sock.recv_into(memory)
    sock.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
    sock.close()
while True:
    threading.Thread(target=discard, args=(listener.accept()[0],), daemon=True).start()
"""

pytestmark = pytest.mark.slow


async def hold_upload(wire: Wire) -> None:
    """Take an upload in without an end."""
    await wire.read_to_end()


def owners(gateway: Processes, clients: list[Wire]) -> list[int | None]:
    """Return the worker that has accepted each connection, None for one in the queue."""
    return gateway.workers_of_ports([client.writer.get_extra_info("sockname")[1] for client in clients])


async def wait_owners(gateway: Processes, ports: list[int]) -> list[int | None]:
    """Wait until all connections are accepted, and return their workers: in a second look, some may have ended."""
    found: list[int | None] = []

    def find() -> bool:
        found[:] = gateway.workers_of_ports(ports)
        return None not in found

    await wait_until(find)
    return found


def most_and_least(gateway: Processes, clients: list[Wire]) -> tuple[int, int]:
    """Return how many of these connections the worker with the most has, and the one with the least."""
    counts = Counter(owners(gateway, clients))
    each = [counts[pid] for pid in gateway.workers]
    return max(each), min(each)


async def open_at_once(gateway: Processes, count: int) -> list[Wire]:
    """Open connections before any worker has time to accept all of the others."""
    socks = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(count)]
    return [Wire(*await asyncio.open_connection(sock=sock)) for sock in socks]


async def wait_connections(gateway: Processes, count: int) -> None:
    """Wait until the workers have this many connections: each has those of clients that left until it notices that."""
    async with asyncio.timeout(2 * TIMEOUT_SECONDS):
        while sum(map(float, CONNECTIONS.findall((await gateway.ops("/metrics"))[1]))) != count:
            pass


#: Of a worker without a core for 50 ms the others take what was left to it, and then a burst is not spread: once in a
#: hundred runs beside three other test runs. Here they wait for it.
PATIENT = "import gateway.workers.load as load; load.LATE_SECONDS = 2.0"
#: Workers lose their core for some ms just before an accept.
INTERRUPTED = """
import random, time
reserve = load.LoadRow.reserve
def reserve_and_wait(row, limit):
    is_reserved = reserve(row, limit)
    time.sleep(random.choice([0.0, 0.005]))
    return is_reserved
load.LoadRow.reserve = reserve_and_wait
"""


# Without a share one worker took all 8. When a connection counted before its accept, one of 4 interrupted workers took
# 4 or none of every sixth burst.
@pytest.mark.parametrize("interruption", ["", INTERRUPTED], ids=["", "interrupted"])
@pytest.mark.parametrize(("workers", "bounds"), [(2, (5, 3)), (4, (3, 1))])
async def test_burst_of_connections_is_spread(
    tmp_path: Path, workers: int, bounds: tuple[int, int], interruption: str
) -> None:
    async with RawUpstream(hold_upload) as upstream:
        config = {**forward_config(upstream.url), "workers": workers}
        async with run_processes(tmp_path, config, prelude=PATIENT + interruption) as gateway:
            await gateway.wait_started()
            for _ in range(5):
                await wait_connections(gateway, 0)
                clients = await open_at_once(gateway, 8)
                await wait_until(lambda clients=clients: None not in owners(gateway, clients))  # type: ignore[misc]
                most, least = most_and_least(gateway, clients)
                for client in clients:
                    await client.close()
                assert most <= bounds[0]
                assert least >= bounds[1]


async def test_burst_of_tls_connections_is_spread_also_after_handshakes_that_failed(tmp_path: Path) -> None:
    """A connection counts from its accept on, and no longer than it lasts: also if its handshake fails."""
    certificate = await asyncio.to_thread(make_certificate, tmp_path)
    config = {
        **forward_config("http://127.0.0.1:9"),
        "tls": {"certificate": str(certificate.path), "key": str(certificate.key)},
    }
    async with run_processes(tmp_path, config, prelude=PATIENT) as gateway:
        await gateway.wait_started()
        for _ in range(3):
            for _ in range(5):
                client = await gateway.connect()
                await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
                await client.read_to_end()
                await client.close()
            await wait_connections(gateway, 0)
            socks = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(8)]
            context = certificate.client_context()
            streams = [
                await asyncio.open_connection(sock=sock, ssl=context, server_hostname="127.0.0.1") for sock in socks
            ]
            clients = [Wire(*each) for each in streams]
            assert None not in owners(gateway, clients)
            most, least = most_and_least(gateway, clients)
            for client in clients:
                await client.close()
            assert (most <= 5, least >= 3) == (True, True)


async def test_connections_that_close_and_open_stay_spread(tmp_path: Path) -> None:
    """The count of a worker that has lost connections goes down."""
    choose = random.Random(1)
    differences = []
    async with RawUpstream(hold_upload) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url), prelude=PATIENT) as gateway:
            await gateway.wait_started()
            clients = await open_at_once(gateway, 20)
            await wait_until(lambda: None not in owners(gateway, clients))
            for _ in range(10):
                choose.shuffle(clients)
                for client in clients[:10]:
                    await client.close()
                # A worker that has not noticed yet that clients have left would leave new ones to the other.
                await wait_connections(gateway, 10)
                clients[:10] = await open_at_once(gateway, 10)
                await wait_until(lambda: None not in owners(gateway, clients))
                most, least = most_and_least(gateway, clients)
                differences.append(most - least)
            for client in clients:
                await client.close()
    assert max(differences) <= 2


async def test_worker_with_a_stuck_loop_keeps_no_client_waiting(tmp_path: Path) -> None:
    """It has fewer connections than the others, and takes none of those that are left to it."""
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, {**forward_config(upstream.url), "workers": 3}) as gateway:
            await gateway.wait_started()
            kept = await open_at_once(gateway, 6)
            await wait_until(lambda: None not in owners(gateway, kept))
            os.kill(gateway.workers[0], signal.SIGSTOP)
            for _ in range(20):
                assert split_response(await gateway.request(GET))[0] == 200
            for client in kept:
                await client.close()


class Load:
    """Clients that send requests without a pause until `stop`; what went wrong is in `failures`."""

    def __init__(self, gateway: Processes, clients: int) -> None:
        self._gateway = gateway
        self._is_stopping = False
        self._tasks = [asyncio.create_task(self._run()) for _ in range(clients)]
        self.requests = 0
        self.failures: list[str] = []

    async def _run(self) -> None:
        while not self._is_stopping:
            try:
                response = await self._gateway.request(GET)
            except OSError as exc:
                self.failures.append(repr(exc))
                continue
            self.requests += 1
            if response[-2:] != b"ok" or split_response(response)[0] != 200:
                self.failures.append(repr(response[:100]))

    async def stop(self) -> None:
        self._is_stopping = True
        await asyncio.gather(*self._tasks)


async def test_no_request_is_lost_while_workers_are_replaced_under_load(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, {**forward_config(upstream.url), "workers": 3}) as gateway:
            await gateway.wait_started()
            load = Load(gateway, 8)
            for count in (2, 3, 2, 3):
                leaving = gateway.workers[0]
                os.kill(leaving, signal.SIGTERM)
                await wait_until(lambda leaving=leaving: leaving not in gateway.workers)  # type: ignore[misc]
                gateway.write_config(workers=count)
                gateway.hang_up()
                await wait_until(lambda count=count: len(gateway.workers) == count)  # type: ignore[misc]
            await load.stop()
            assert load.failures == []
            assert load.requests > 100


async def test_killed_workers_take_only_their_own_requests_along_and_refuse_no_connection(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, {**forward_config(upstream.url), "workers": 3}) as gateway:
            await gateway.wait_started()
            load = Load(gateway, 8)
            for count in range(1, 6):
                os.kill(gateway.workers[0], signal.SIGKILL)
                await gateway.wait_log("serves", count)
            await load.stop()
            # Eight clients, one request each at a time.
            assert len(load.failures) <= 5 * 8
            assert not [failure for failure in load.failures if "Refused" in failure]
            assert load.requests > 100


async def test_stop_with_an_inherited_socket_refuses_no_client_and_the_next_start_serves_those_that_wait(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        prelude = f"""
import os
os.dup2({listener.fileno()}, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="traffic")
"""
        os.set_inheritable(listener.fileno(), True)
        async with RawUpstream(responding(OK)) as upstream:
            waiting: list[asyncio.Task[bytes]] = []
            for _ in range(2):
                config = forward_config(upstream.url)
                async with run_processes(tmp_path, config, prelude=prelude, passed=[listener.fileno()]) as gateway:
                    await gateway.wait_started()
                    assert gateway.port == listener.getsockname()[1]
                    for client in waiting:
                        assert split_response(await client)[0] == 200
                    assert split_response(await gateway.request(GET))[0] == 200
                    assert await gateway.terminate() == 0
                    waiting = [asyncio.create_task(gateway.request(GET)) for _ in range(5)]
                    await asyncio.sleep(0)
            for client in waiting:
                client.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_eight_uploads_of_a_gigabyte_are_shared_by_two_workers(tmp_path: Path) -> None:
    with discarding_upstream() as port:
        async with run_processes(tmp_path, forward_config(f"http://127.0.0.1:{port}"), prelude=PATIENT) as gateway:
            await gateway.wait_started()
            for _ in range(3):
                await wait_connections(gateway, 0)
                command = [sys.executable, "-c", SENDER, str(gateway.port), "8", str(GIB)]
                sender = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
                assert sender.stdout is not None
                ports = list(map(int, (await sender.stdout.readline()).split()[1:]))
                assert max(Counter(await wait_owners(gateway, ports)).values()) <= 5
                assert (await sender.stdout.read()).count(b"200 OK") == 8
                await sender.wait()


@contextlib.contextmanager
def discarding_upstream() -> Iterator[int]:
    """Serve uploads in a process of its own, and discard them; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", DISCARDER, str(listener.fileno())]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()])
        try:
            yield listener.getsockname()[1]
        finally:
            process.kill()
            process.wait()

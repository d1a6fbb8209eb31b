"""Workers, the template and the supervisor die in every way: what they take along, and what replaces them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.peers import (
    OK,
    RawUpstream,
    Wire,
    forward_config,
    responding,
    split_response,
    wait_until,
)
from tests.workers.processes import (
    Processes,
    children,
    close_clients,
    is_running,
    open_descriptors_of,
    run_processes,
    threads_of,
)

GET = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
KEPT_GET = b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n"
#: Looks for missing beats twenty times a second, and calls four in a row stuck.
IMPATIENT = """
from gateway.workers import pool, worker
pool.BEAT_SECONDS = worker.BEAT_SECONDS = 0.05
pool.STUCK_BEATS = 4
"""
#: A request for /block stops the event loop of its worker.
BLOCKING = """
import threading
from gateway.handler import ExchangeHandler
handle = ExchangeHandler.handle
def block_the_loop():
    threading.Event().wait()
async def handle_or_block(self, connection, message, content):
    if message.path == "/block":
        block_the_loop()
    return await handle(self, connection, message, content)
ExchangeHandler.handle = handle_or_block
"""
#: A worker dies at its start while a file exists, with some last words.
DYING = """
import os, sys
from gateway.workers.worker import Worker
start = Worker._start_gateway
async def start_or_die(self, content):
    if os.path.exists(os.environ["DIE"]):
        sys.stderr.write("the disk is on fire\\n")
        sys.stderr.flush()
        os._exit(3)
    return await start(self, content)
Worker._start_gateway = start_or_die
"""

pytestmark = pytest.mark.slow


async def hold(wire: Wire) -> None:
    """Send the half of a response and wait for the end."""
    await wire.read_head()
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
    await wire.read_to_end()


async def one_client_per_worker(gateway: Processes, count: int) -> dict[int, Wire]:
    """Open connections with a response under way until each worker has one; return them by worker."""
    clients: dict[int, Wire] = {}
    spare = []
    while len(clients) < count:
        client = await gateway.connect()
        await client.send(KEPT_GET)
        await client.read_until(b"ha")
        worker = gateway.worker_of(client)
        if worker in clients:
            spare.append(client)
        else:
            clients[worker] = client
    await close_clients(gateway, spare)
    return clients


async def test_killed_worker_takes_only_its_own_transfers_and_is_replaced(tmp_path: Path) -> None:
    async with RawUpstream(hold) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url)) as gateway:
            await gateway.wait_started()
            clients = await one_client_per_worker(gateway, 2)
            killed, other = clients
            os.kill(killed, signal.SIGKILL)
            # The peers see a cut, not the end of a whole response.
            assert await clients[killed].read_to_end() == b""
            died = await gateway.wait_log(f"worker {killed} died: killed by SIGKILL")
            assert (died["level"], died["worker"]) == ("error", killed)
            await gateway.wait_log("serves")
            assert len(gateway.workers) == 2
            assert killed not in gateway.workers
            assert other in gateway.workers
            # The other transfer goes on.
            for wire in upstream.wires:
                await wire.send_all([b"lf"])
            assert await clients[other].read_exactly(2) == b"lf"
            for client in clients.values():
                await client.close()


async def test_worker_that_dies_again_and_again_is_held_off_with_its_last_words_in_the_log(tmp_path: Path) -> None:
    die = tmp_path / "die"
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(
            tmp_path, forward_config(upstream.url), prelude=DYING, environment={"DIE": str(die)}
        ) as gateway:
            await gateway.wait_started()
            die.touch()
            os.kill(gateway.workers[0], signal.SIGKILL)
            for count in (1, 2):
                died = await gateway.wait_log("died: exit status 3", count)
                assert died["stderr"] == "the disk is on fire"
            await gateway.wait_log("the next worker starts in 0.5 s")
            assert split_response(await gateway.request(GET))[0] == 200
            die.unlink()
            await gateway.wait_log("serves")
            assert len(gateway.workers) == 2


async def test_worker_that_cannot_be_forked_is_tried_again_with_pauses(tmp_path: Path) -> None:
    full = tmp_path / "full"
    prelude = """
import errno, os
fork = os.fork
def fork_or_fail():
    if os.path.exists(os.environ["FULL"]):
        raise BlockingIOError(errno.EAGAIN, "out of processes")
    return fork()
os.fork = fork_or_fail
"""
    async with RawUpstream(responding(OK)) as upstream:
        config = forward_config(upstream.url)
        async with run_processes(tmp_path, config, prelude=prelude, environment={"FULL": str(full)}) as gateway:
            await gateway.wait_started()
            full.touch()
            os.kill(gateway.workers[0], signal.SIGKILL)
            await gateway.wait_log("a worker cannot be started: [Errno 11]", 2)
            assert split_response(await gateway.request(GET))[0] == 200
            full.unlink()
            await gateway.wait_log("serves")
            assert len(gateway.workers) == 2


async def test_worker_that_cannot_start_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    die = tmp_path / "die"
    die.touch()
    async with run_processes(
        tmp_path, forward_config("http://127.0.0.1:9"), prelude=DYING, environment={"DIE": str(die)}
    ) as gateway:
        assert await gateway.wait_exit() == 1
        assert (await gateway.wait_log("died: exit status 3"))["stderr"] == "the disk is on fire"
        await gateway.wait_end_of_output()
        assert gateway.stderr.startswith(b"gateway: cannot start: worker ")
        assert gateway.stderr.endswith(b" died: exit status 3\n")


async def test_worker_with_a_stuck_loop_writes_its_stack_to_the_log_and_is_replaced(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        prelude = IMPATIENT + BLOCKING
        async with run_processes(tmp_path, forward_config(upstream.url), prelude=prelude) as gateway:
            await gateway.wait_started()
            client = await gateway.connect()
            await client.send(b"GET /block HTTP/1.1\r\nHost: gw\r\n\r\n")
            died = await gateway.wait_log("its event loop was stuck")
            assert "block_the_loop" in died["stderr"]
            assert await client.read_to_end() == b""
            await client.close()
            await gateway.wait_log("serves")
            assert died["worker"] not in gateway.workers
            assert split_response(await gateway.request(GET))[0] == 200


async def test_worker_that_was_stopped_by_a_signal_is_replaced(tmp_path: Path) -> None:
    """It cannot even write its stack."""
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url), prelude=IMPATIENT) as gateway:
            await gateway.wait_started()
            stopped = gateway.workers[0]
            os.kill(stopped, signal.SIGSTOP)
            await gateway.wait_log(f"worker {stopped} died: its event loop was stuck")
            await gateway.wait_log("serves")
            assert split_response(await gateway.request(GET))[0] == 200


async def test_gateway_that_was_stopped_as_a_whole_kills_no_worker_when_it_goes_on(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url), prelude=IMPATIENT) as gateway:
            await gateway.wait_started()
            workers = gateway.workers
            os.killpg(gateway.supervisor, signal.SIGSTOP)
            await asyncio.sleep(0.5)
            os.killpg(gateway.supervisor, signal.SIGCONT)
            for _ in range(10):
                assert split_response(await gateway.request(GET))[0] == 200
            await asyncio.sleep(0.3)
            assert gateway.workers == workers


async def test_workers_drain_and_end_when_the_supervisor_dies(tmp_path: Path) -> None:
    async with RawUpstream(hold) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url)) as gateway:
            await gateway.wait_started()
            # One that was replaced must not keep a descriptor of the channels of the others.
            os.kill(gateway.workers[0], signal.SIGKILL)
            await gateway.wait_log("serves")
            clients = await one_client_per_worker(gateway, 2)
            workers, template = gateway.workers, gateway.template
            os.kill(gateway.supervisor, signal.SIGKILL)
            await wait_until(lambda: not is_running(template))
            await gateway.wait_log("the supervisor process has ended", 2)
            for wire in upstream.wires:
                await wire.send_all([b"lf"])
            for client in clients.values():
                assert await client.read_to_end() == b"lf"
                await client.close()
            await wait_until(lambda: not any(map(is_running, workers)))
            exchanges = await gateway.wait_exchanges(2)
            # Some clients left before: those that were not the first of their worker.
            outcomes = [line["outcome"] for line in exchanges if line["status"] == 200]
            assert [outcome for outcome in outcomes if outcome != "client_left"] == ["complete"] * 2


async def test_gateway_drains_and_fails_when_the_template_dies(tmp_path: Path) -> None:
    async with RawUpstream(hold) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url)) as gateway:
            await gateway.wait_started()
            clients = await one_client_per_worker(gateway, 2)
            workers = gateway.workers
            os.kill(gateway.template, signal.SIGKILL)
            await gateway.wait_log("drain started", 2)
            for wire in upstream.wires:
                await wire.send_all([b"lf"])
            for client in clients.values():
                assert await client.read_to_end() == b"lf"
                await client.close()
            assert await gateway.wait_exit() == 1
            await gateway.wait_end_of_output()
            assert b"the template process has ended" in gateway.stderr
            assert not any(map(is_running, workers))


async def test_many_deaths_leave_no_descriptor_and_no_zombie(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        prelude = "from gateway.workers import restarts\nrestarts.LONG_SECONDS = 0"
        async with run_processes(tmp_path, forward_config(upstream.url), prelude=prelude) as gateway:
            await gateway.wait_started()
            await gateway.request(GET)
            processes = (gateway.supervisor, gateway.template)
            before = [open_descriptors_of(pid) for pid in processes]
            in_workers = len(open_descriptors_of(gateway.workers[1]))
            for count in range(1, 11):
                os.kill(gateway.workers[0], signal.SIGKILL)
                await gateway.wait_log("serves", count)
                assert split_response(await gateway.request(GET))[0] == 200
            await wait_until(lambda: [len(open_descriptors_of(pid)) for pid in processes] == list(map(len, before)))
            assert len(children(gateway.template)) == 2
            assert all(map(is_running, gateway.workers))
            await wait_until(lambda: len(open_descriptors_of(gateway.workers[1])) <= in_workers)


async def test_template_has_no_thread_and_nothing_open(tmp_path: Path) -> None:
    async with run_processes(tmp_path, forward_config("http://127.0.0.1:9")) as gateway:
        await gateway.wait_started()
        assert threads_of(gateway.template) == 1
        # Control, wakeup.
        assert len(open_descriptors_of(gateway.template)) == 3 + 3


async def test_process_that_a_worker_has_started_does_not_delay_its_replacement(tmp_path: Path) -> None:
    """It keeps the worker's channel and pipes open: a plug-in may fork."""
    forking = """
import os, time
from gateway.workers.worker import Worker
serve = Worker._serve_until_stopped
async def serve_and_fork(self):
    try:
        # One of the workers creates it, however close together they start.
        os.close(os.open(os.environ["FORKED"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        pass
    else:
        if not os.fork():
            time.sleep(60)
            os._exit(0)
    await serve(self)
Worker._serve_until_stopped = serve_and_fork
"""
    async with run_processes(
        tmp_path,
        forward_config("http://127.0.0.1:9"),
        prelude=forking,
        environment={"FORKED": str(tmp_path / "forked")},
    ) as gateway:
        await gateway.wait_started()
        (parent,) = (pid for pid in gateway.workers if children(pid))
        (child,) = children(parent)
        os.kill(parent, signal.SIGKILL)
        await gateway.wait_log("serves")
        assert is_running(child)
        gateway.process.send_signal(signal.SIGTERM)
        await wait_until(lambda: not is_running(gateway.supervisor))
        # It has the gateway's standard output.
        os.kill(child, signal.SIGKILL)
        assert await gateway.wait_exit() == 0

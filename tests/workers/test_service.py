"""The service manager's protocol, inherited sockets, and the log, with several workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from tests.peers import OK, RawUpstream, Wire, forward_config, responding, split_response, wait_until
from tests.test_systemd import Manager
from tests.workers.processes import is_running, run_processes

GET = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
#: Each request logs a line that is longer than what one write to a pipe keeps together (PIPE_BUF).
LONG_LINES = """
import logging
from gateway.handler import ExchangeHandler
record = ExchangeHandler._record
def log_and_record(self, exchange):
    logging.getLogger("gateway").info("long " + "x" * 20_000)
    record(self, exchange)
ExchangeHandler._record = log_and_record
"""
WATCHED = "import os\nos.environ['WATCHDOG_PID'] = str(os.getpid())\n"

pytestmark = pytest.mark.slow


async def hold(wire: Wire) -> None:
    """Send the half of a response and wait for the end."""
    await wire.read_head()
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
    await wire.read_to_end()


async def test_manager_learns_of_start_reload_transfers_and_stop(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    manager = Manager(address)
    try:
        async with RawUpstream(hold) as upstream:
            config = forward_config(upstream.url, top={"workers": 3})
            environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"}
            async with run_processes(tmp_path, config, prelude=WATCHED, environment=environment) as gateway:
                assert await manager.read() == {"READY": "1", "STATUS": "3 workers, 0 transfers"}
                assert await manager.read() == {"WATCHDOG": "1", "STATUS": "3 workers, 0 transfers"}
                await gateway.wait_started()
                gateway.write_config(workers=2)
                gateway.hang_up()
                assert int((await manager.wait("RELOADING"))["MONOTONIC_USEC"]) > 0
                await manager.wait("READY")
                # Before there is a transfer: the worker that is one too many would first finish it.
                while (await manager.read())["STATUS"] != "2 workers, 0 transfers":
                    pass
                client = await gateway.connect()
                await client.send(GET)
                await client.read_until(b"ha")
                while (await manager.read())["STATUS"] != "2 workers, 1 transfers":
                    pass
                gateway.process.send_signal(signal.SIGTERM)
                assert (await manager.wait("STOPPING"))["STATUS"].startswith("draining, 2 workers, ")
                await upstream.wires[0].send(b"lf")
                assert await client.read_to_end() == b"lf"
                await client.close()
                assert await gateway.wait_exit() == 0
    finally:
        manager.close()


async def test_manager_is_told_nothing_by_workers_and_nothing_while_the_supervisor_is_stuck(tmp_path: Path) -> None:
    """A watchdog that a worker fed would hide a supervisor that does nothing."""
    address = str(tmp_path / "notify")
    manager = Manager(address)
    try:
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"}
        config = forward_config("http://127.0.0.1:9")
        async with run_processes(tmp_path, config, prelude=WATCHED, environment=environment) as gateway:
            await gateway.wait_started()
            await manager.wait("WATCHDOG")
            os.kill(gateway.supervisor, signal.SIGSTOP)
            # What was sent before.
            with contextlib.suppress(TimeoutError):
                while True:
                    await asyncio.wait_for(manager.read(), 0.3)
            os.kill(gateway.supervisor, signal.SIGCONT)
            await manager.wait("WATCHDOG")
    finally:
        manager.close()


async def test_both_sockets_may_come_from_the_service_manager(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ops, socket.create_server(("127.0.0.1", 0)) as traffic:
        prelude = f"""
import os
os.dup2({ops.fileno()}, 103)
os.dup2({traffic.fileno()}, 104)
os.dup2(103, 3)
os.dup2(104, 4)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="ops:traffic")
"""
        async with RawUpstream(responding(OK)) as upstream:
            config = forward_config(upstream.url)
            passed = [ops.fileno(), traffic.fileno()]
            async with run_processes(tmp_path, config, prelude=prelude, passed=passed) as gateway:
                await gateway.wait_started()
                assert (gateway.port, gateway.ops_port) == (traffic.getsockname()[1], ops.getsockname()[1])
                assert split_response(await gateway.request(GET))[0] == 200
                assert (await gateway.ops("/readyz"))[0] == 200
                assert await gateway.terminate() == 0


async def test_port_in_use_ends_the_start_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for keys in ({"listen": address}, {"ops": {"listen": address}}):
            async with run_processes(tmp_path, {**forward_config("http://127.0.0.1:9"), **keys}) as gateway:
                assert await gateway.wait_exit() == 1
                await gateway.wait_end_of_output()
                key = "listen" if "listen" in keys else "ops.listen"
                assert gateway.stderr.decode().startswith(f"gateway: cannot start: {key}: cannot listen on {address}")
                assert gateway.stderr.count(b"\n") == 1


@pytest.mark.interpreted(reason="replaces a method of ExchangeHandler")
async def test_log_lines_of_all_workers_are_whole_however_long(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        config = {**forward_config(upstream.url), "workers": 3}
        async with run_processes(tmp_path, config, prelude=LONG_LINES) as gateway:
            await gateway.wait_started()
            for _ in range(10):
                await asyncio.gather(*(gateway.request(GET) for _ in range(20)))
            # Each line was parsed as JSON when it was read.
            await gateway.wait_exchanges(200)
            await gateway.wait_log("long", 200)
            lines = [line for line in gateway.log if line.get("message", "").startswith("long")]
            assert {len(line["message"]) for line in lines} == {20_005}
            assert {line["worker"] for line in lines} == set(gateway.workers)
            assert await gateway.terminate() == 0


async def test_log_that_is_not_read_stops_no_worker_and_no_supervisor(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url), prelude=LONG_LINES) as gateway:
            await gateway.wait_started()
            # The pipe takes 64 KiB.
            gateway.pause_log()
            for _ in range(10):
                responses = await asyncio.gather(*(gateway.request(GET) for _ in range(20)))
                assert {split_response(response)[0] for response in responses} == {200}
            assert (await gateway.ops("/readyz"))[0] == 200
            gateway.resume_log()
            assert len(await gateway.wait_exchanges(200)) == 200


async def test_log_that_is_not_read_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """All processes wait for one that writes."""
    prelude = "import gateway.observe.log as log; log._LAST_SECONDS = 0.1"
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url), prelude=prelude) as gateway:
            await gateway.wait_started()
            gateway.pause_log()
            # The pipe takes 64 KiB.
            for _ in range(10):
                await asyncio.gather(*(gateway.request(GET) for _ in range(20)))
            gateway.process.send_signal(signal.SIGTERM)
            await wait_until(lambda: not is_running(gateway.supervisor))
            gateway.resume_log()
            assert await gateway.wait_exit() == 0


async def test_worker_that_is_killed_while_the_log_is_not_read_leaves_whole_lines(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url)) as gateway:
            await gateway.wait_started()
            gateway.pause_log()
            # The pipe takes 64 KiB.
            for _ in range(10):
                await asyncio.gather(*(gateway.request(GET) for _ in range(20)))
            for worker in gateway.workers:
                os.kill(worker, signal.SIGKILL)
            gateway.resume_log()
            # Each line is parsed as JSON when it is read.
            await gateway.wait_log("serves", 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_every_exchange_has_one_whole_line_while_workers_are_replaced(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Also while the log is read in bursts, and the config is replaced."""
    prelude = LONG_LINES.replace("20_000", "2100")
    done: list[str] = []
    async with RawUpstream(responding(OK)) as upstream:
        config = {**forward_config(upstream.url), "workers": 4}
        async with run_processes(tmp_path, config, prelude=prelude) as gateway:
            await gateway.wait_started()

            async def send(client: int) -> None:
                for count in range(60):
                    target = f"/{client}/{count}"
                    with contextlib.suppress(ConnectionError):
                        response = await gateway.request(GET.replace(b" / ", f" {target} ".encode()))
                        done.extend([target] * response.startswith(b"HTTP/1.1 200"))

            clients = asyncio.gather(*map(send, range(16)))
            round_number = 0
            while not clients.done():
                await asyncio.sleep(0.1)
                round_number += 1
                (gateway.pause_log if round_number % 2 else gateway.resume_log)()
                if round_number % 4 == 0 and gateway.workers:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(gateway.workers[0], number)
                gateway.write_config(max_connections=1000 + round_number)
                gateway.hang_up()
            await clients
            gateway.resume_log()
            assert await gateway.terminate() == 0
            await gateway.wait_end_of_output()
            # Each line was parsed as JSON when it was read.
            logged = [line["target"] for line in gateway.log if line["event"] == "exchange" and line["status"] == 200]
            assert len(logged) == len(set(logged))
            if number == signal.SIGTERM:
                assert sorted(logged) == sorted(done)


@pytest.mark.interpreted(reason="replaces a method of ExchangeHandler")
async def test_lines_that_a_worker_cannot_write_before_its_end_are_counted(tmp_path: Path) -> None:
    """No line, metric or message said that they were missing."""
    prelude = LONG_LINES.replace("20_000", "3000") + "import gateway.observe.log as log; log._LAST_SECONDS = 0.1"
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url), prelude=prelude) as gateway:
            await gateway.wait_started()
            gateway.pause_log()
            # The pipe takes 64 KiB, the reader 512 KiB.
            for _ in range(20):
                await asyncio.gather(*(gateway.request(GET) for _ in range(20)))
            retired = gateway.workers
            for worker in retired:
                os.kill(worker, signal.SIGTERM)
            await wait_until(lambda: not any(map(is_running, retired)))
            _, metrics = await gateway.ops("/metrics")
            found = re.search(r"^gateway_log_lines_dropped_total (\d+)", metrics, re.MULTILINE)
            assert found is not None
            gateway.resume_log()
            await gateway.wait_log("serves", 2)
            assert await gateway.terminate() == 0
            await gateway.wait_end_of_output()
            written = [line for line in gateway.log if line["event"] == "exchange" or "long" in line["message"]]
            # Each worker that was retired had two lines more, on its drain.
            assert len(written) + int(found[1]) == 800 + 4


async def test_what_a_worker_writes_to_standard_error_is_logged(tmp_path: Path) -> None:
    prelude = """
import sys
from gateway.workers.worker import Worker
serve = Worker._serve_until_stopped
async def write_and_serve(self):
    sys.stderr.write("a library warns\\n")
    sys.stderr.flush()
    await serve(self)
Worker._serve_until_stopped = write_and_serve
"""
    async with run_processes(tmp_path, forward_config("http://127.0.0.1:9"), prelude=prelude) as gateway:
        await gateway.wait_started()
        line = await gateway.wait_log("wrote to standard error")
        assert (line["level"], line["stderr"]) == ("warning", "a library warns")
        assert gateway.stderr == b""


async def test_standard_output_that_is_closed_ends_nothing(tmp_path: Path) -> None:
    """The first file that is opened then gets its descriptor, which a worker gives to its log."""
    prelude = "import os, sys\nos.close(1)\nsys.stdout = None\n"
    async with RawUpstream(responding(OK)) as upstream:
        config = {**forward_config(upstream.url), "listen": "127.0.0.1:0"}
        with socket.create_server(("127.0.0.1", 0)) as free:
            config["listen"] = f"127.0.0.1:{free.getsockname()[1]}"
        async with run_processes(tmp_path, config, prelude=prelude) as gateway:
            gateway.port = int(json.loads(gateway.config.read_text())["listen"].rpartition(":")[2])
            await wait_until(lambda: is_listening(gateway.port))
            for _ in range(10):
                assert split_response(await gateway.request(GET))[0] == 200
            gateway.process.send_signal(signal.SIGTERM)
            assert await gateway.wait_exit() == 0
            assert gateway.stderr == b""


def is_listening(port: int) -> bool:
    """Return whether a process listens on a port."""
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return any(f":{port:04X} " in line and " 0A " in line for line in lines)

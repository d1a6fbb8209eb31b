"""The service manager's protocol: notifications and watchdog on a real socket, and inherited listening sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.systemd import Notifier, take_sockets
from tests.peers import OK, TIMEOUT_SECONDS, RawUpstream, forward_config, responding, split_response

GET = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
LISTEN = {"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}}
RUN = "-m gateway run --config"


class Manager:
    """The service manager's end of the notification socket."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    async def read(self) -> dict[str, str]:
        """Return the assignments of the next datagram."""
        loop = asyncio.get_running_loop()
        text = await asyncio.wait_for(loop.sock_recv(self._socket, 4096), TIMEOUT_SECONDS)
        return dict(line.split("=", 1) for line in text.decode().splitlines())

    async def wait(self, name: str) -> dict[str, str]:
        """Return the next datagram that assigns `name`."""
        while name not in (assigned := await self.read()):
            pass
        return assigned

    def close(self) -> None:
        self._socket.close()


@contextlib.asynccontextmanager
async def service(command: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a shell command as a service; kill it at the end."""
    pipe = asyncio.subprocess.PIPE
    passed = [int(value) for name, value in environment.items() if name.startswith("PASSED_")]
    running = await asyncio.create_subprocess_exec(
        "bash", "-c", command, stdout=pipe, stderr=pipe, pass_fds=passed, env={**os.environ, **environment}
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


def write_config(directory: Path, upstream: str) -> Path:
    path = directory / "gateway.yaml"
    path.write_text(json.dumps(forward_config(upstream, top=LISTEN)))
    return path


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Yield a listening socket that outlives the processes it is passed to."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.mark.slow
@pytest.mark.parametrize("address", ["{}/notify", "@gateway-test-{}"])
async def test_manager_learns_of_start_reload_stop_and_life(tmp_path: Path, address: str) -> None:
    address = address.format(tmp_path if address.startswith("{") else os.getpid())
    manager = Manager(address)
    config = write_config(tmp_path, "http://127.0.0.1:9")
    command = f"WATCHDOG_PID=$$ exec {sys.executable} {RUN} {config}"
    try:
        async with service(command, NOTIFY_SOCKET=address, WATCHDOG_USEC="100000") as running:
            assert await manager.read() == {"READY": "1", "STATUS": "serving, exchanges in flight: 0"}
            assert await manager.read() == {"WATCHDOG": "1", "STATUS": "serving, exchanges in flight: 0"}
            running.send_signal(signal.SIGHUP)
            assert int((await manager.wait("RELOADING"))["MONOTONIC_USEC"]) > 0
            await manager.wait("READY")
            # A reload that fails has ended, too.
            config.write_text("routes: 1")
            running.send_signal(signal.SIGHUP)
            await manager.wait("RELOADING")
            await manager.wait("READY")
            running.send_signal(signal.SIGTERM)
            assert (await manager.wait("STOPPING"))["STATUS"].startswith("draining")
            await asyncio.wait_for(running.communicate(), TIMEOUT_SECONDS)
            assert running.returncode == 0
    finally:
        manager.close()


@pytest.mark.slow
async def test_restart_with_an_inherited_socket_refuses_no_client(tmp_path: Path, listener: socket.socket) -> None:
    async def request() -> int:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(GET)
        response = await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS)
        writer.close()
        return int(split_response(response)[0])

    command = f"exec 3<&$PASSED_LISTENER; LISTEN_PID=$$ exec {sys.executable} {RUN} "
    variables = {"PASSED_LISTENER": str(listener.fileno()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "traffic"}
    async with RawUpstream(responding(OK)) as upstream:
        command += str(write_config(tmp_path, upstream.url))
        for _ in range(2):
            # No process serves the port yet, or no longer: the client waits in the queue of the socket.
            waiting = asyncio.create_task(request())
            async with service(command, **variables) as running:
                assert await waiting == 200
                running.send_signal(signal.SIGTERM)
                await asyncio.wait_for(running.communicate(), TIMEOUT_SECONDS)
                assert running.returncode == 0


@pytest.mark.slow
async def test_socket_that_cannot_be_used_is_a_message_and_no_traceback(
    tmp_path: Path, listener: socket.socket
) -> None:
    config = write_config(tmp_path, "http://127.0.0.1:9")
    command = f"exec 3<&$PASSED_A 4<&$PASSED_A 5<&$PASSED_A; LISTEN_PID=$$ exec {sys.executable} {RUN} {config}"
    async with service(command, PASSED_A=str(listener.fileno()), LISTEN_FDS="3") as running:
        _, err = await asyncio.wait_for(running.communicate(), TIMEOUT_SECONDS)
    assert running.returncode == 1
    assert b"cannot start: socket activation passed 3 sockets" in err
    assert b"Traceback" not in err


def test_sockets_of_another_process_are_left_alone() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "traffic"}
    assert take_sockets(environment) == {}
    assert environment == {}


async def test_without_a_service_manager_nothing_is_sent() -> None:
    environment = {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier.from_environment(environment)
    # It has nothing to do from time to time.
    await asyncio.wait_for(notifier.run(lambda: "serving"), TIMEOUT_SECONDS)
    notifier.close()
    assert environment == {}


def test_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "gone"), None)
    notifier.report_ready("serving")
    notifier.close()

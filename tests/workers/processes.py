"""A gateway with several workers as real processes, and what a test asks of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.leaks import stray_lines
from tests.peers import TIMEOUT_SECONDS, Wire

LISTEN: dict[str, Any] = {"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0", "drain": "on"}, "workers": 2}


def children(pid: int) -> list[int]:
    """Return the process ids of the children of a process, zombies included."""
    return [
        int(each) for path in Path(f"/proc/{pid}/task").iterdir() for each in (path / "children").read_text().split()
    ]


def is_running(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return not re.search(r"^State:\s+Z", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return False


def open_descriptors_of(pid: int) -> list[str]:
    """Return what the descriptors of a process lead to."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        # It may be closed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(link))
    return found


def threads_of(pid: int) -> int:
    """Return how many threads a process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def name_of(pid: int) -> str:
    """Return what `ps` shows of a process."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _inodes_of(local_port: int) -> dict[int, str]:
    """Return the inodes of the gateway's connections on this port, by the port of the client; 0 for those in the queue.

    The file has thousands of lines after many connections: it is read once for all.
    """
    end = f":{local_port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if end in line]
    return {int(row[2].rpartition(":")[2], 16): row[9] for row in rows if row[1].endswith(end)}


class Processes:
    """A running gateway: its supervisor, and the log lines it has written."""

    def __init__(self, process: asyncio.subprocess.Process, config: Path) -> None:
        self.process = process
        self.config = config
        self.log: list[dict[str, Any]] = []
        self.lines: list[bytes] = []
        self._more = asyncio.Event()
        self.stderr = b""
        self.is_reading = asyncio.Event()
        self.is_reading.set()
        self.readers: list[asyncio.Task[None]] = []

    async def read_log(self) -> None:
        """Read the log until its end."""
        assert self.process.stdout is not None
        while line := await self._read_line(self.process.stdout):
            self.lines.append(line)
            self.log.append(json.loads(line))
            self._more.set()

    async def _read_line(self, stream: asyncio.StreamReader) -> bytes:
        await self.is_reading.wait()
        return await stream.readline()

    def pause_log(self) -> None:
        """Read no more of the log, once the line that is waited for is here."""
        self.is_reading.clear()

    def resume_log(self) -> None:
        """Go on reading the log."""
        self.is_reading.set()

    async def read_stderr(self) -> None:
        assert self.process.stderr is not None
        while data := await self.process.stderr.read(2**16):
            self.stderr += data

    async def wait_log(self, text: str, count: int = 1) -> dict[str, Any]:
        """Wait for the count-th message that contains a text, and return its line."""
        async with asyncio.timeout(2 * TIMEOUT_SECONDS):
            while True:
                found = [line for line in self.log if text in line.get("message", "")]
                if len(found) >= count:
                    return found[count - 1]
                self._more.clear()
                await self._more.wait()

    async def wait_exchanges(self, count: int) -> list[dict[str, Any]]:
        """Wait for this many log lines of exchanges, and return all."""
        async with asyncio.timeout(2 * TIMEOUT_SECONDS):
            while True:
                found = [line for line in self.log if line["event"] == "exchange"]
                if len(found) >= count:
                    return found
                self._more.clear()
                await self._more.wait()

    async def wait_started(self) -> None:
        """Wait for the ports."""
        message = (await self.wait_log("listening on"))["message"]
        found = re.fullmatch(r"listening on .*:(\d+), ops on .*:(\d+)", message)
        assert found is not None
        self.port, self.ops_port = int(found[1]), int(found[2])
        await self.wait_log("processes:")

    @property
    def supervisor(self) -> int:
        return self.process.pid

    @property
    def template(self) -> int:
        (template,) = children(self.supervisor)
        return template

    @property
    def workers(self) -> list[int]:
        """The workers' process ids, in the order in which they were forked."""
        return children(self.template)

    def worker_of(self, client: Wire) -> int:
        """Return the worker that has accepted a client's connection."""
        port: int = client.writer.get_extra_info("sockname")[1]
        return self.worker_of_port(port)

    def worker_of_port(self, port: int) -> int:
        """Return the worker that has accepted the connection of a client on this local port."""
        (worker,) = self.workers_of_ports([port])
        assert worker is not None
        return worker

    def workers_of_ports(self, ports: Sequence[int]) -> list[int | None]:
        """Return the worker that has accepted the connection of each client's port, None for one in the queue."""
        inodes = _inodes_of(self.port)
        workers = {name: pid for pid in self.workers for name in open_descriptors_of(pid)}
        return [workers.get(f"socket:[{inodes.get(port)}]") for port in ports]

    async def connect(self) -> Wire:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
        return Wire(reader, writer)

    async def wait_refused(self) -> None:
        """Wait until connections are refused: `drain started` is logged before the last socket is closed."""
        with contextlib.suppress(ConnectionRefusedError):
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while True:
                    await (await self.connect()).close()

    async def request(self, *request: bytes) -> bytes:
        """Send a request and return every byte received until the gateway closes the connection."""
        client = await self.connect()
        try:
            await client.send_all(request)
            return await client.read_to_end()
        finally:
            await client.close()

    async def ops(self, path: str) -> tuple[int, str]:
        """GET a path of the ops port; return status and body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ops_port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            head, _, body = (await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS)).decode().partition("\r\n\r\n")
            return int(head.split()[1]), body
        finally:
            writer.close()

    def write_config(self, **keys: Any) -> None:
        """Replace top-level keys of the config file."""
        self.config.write_text(json.dumps({**json.loads(self.config.read_text()), **keys}))

    def hang_up(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    async def terminate(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.wait_exit()

    async def wait_end_of_output(self) -> None:
        """Wait until every process of the gateway has closed its standard output and error."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await asyncio.wait(self.readers)

    async def wait_exit(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 2 * TIMEOUT_SECONDS)


async def close_clients(gateway: Processes, clients: Sequence[Wire]) -> None:
    """Close clients whose exchange is under way; return when the gateway has ended these exchanges."""
    count = sum(line["event"] == "exchange" for line in gateway.log)
    for client in clients:
        await client.close()
    await gateway.wait_exchanges(count + len(clients))


@contextlib.asynccontextmanager
async def run_processes(
    directory: Path,
    config: dict[str, Any],
    *,
    prelude: str = "",
    passed: Sequence[int] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Processes]:
    """Run `gateway run` with this config, with the descriptors `passed`; `prelude` is Python code that runs before it.

    At the end, kill what is left of it, and check that it has logged no bug.
    """
    path = directory / "gateway.yaml"
    path.write_text(json.dumps({**LISTEN, **config}))
    code = f"{prelude}\nimport sys\nfrom gateway.__main__ import main\nsys.exit(main())"
    command = [sys.executable, "-c", code, "run", "--config", str(path)]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=2**18,
        pass_fds=passed,
        start_new_session=True,
        env={**os.environ, **environment},
    )
    running = Processes(process, path)
    try:
        async with asyncio.TaskGroup() as group:
            running.readers = [group.create_task(read()) for read in (running.read_log, running.read_stderr)]
            try:
                yield running
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
    finally:
        output = b"".join(running.lines) + running.stderr
    assert not list(stray_lines(output.decode())), output.decode()

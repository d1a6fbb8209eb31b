"""Compiles and drives the load generator, `load_generator.c`: client and upstream in one process that polls.

Its first line of comments says why it polls. It replaces `load.py` for small requests only: there, clients in Python
cost more than the proxies they measure, and each wake-up of a sleeping client is charged to the proxy that sends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from tests.ports import free_port

SOURCE = Path(__file__).parent / "load_generator.c"

Mode = Literal["warm", "cold", "even", "random"]


class LoadError(Exception):
    """A run did not end with a 200 response to each request."""


@dataclass(frozen=True)
class Load:
    """Requests of one run: how many, on how many connections, and how they are sent (see `load_generator.c`)."""

    request: bytes
    count: int
    connections: int
    mode: Mode = "warm"
    #: Requests per second of the modes `even` and `random`.
    rate: float = 0.0
    #: Determines the intervals of `random`.
    seed: int = 1


@dataclass(frozen=True)
class Timing:
    """What the client saw: requests per second, microseconds that a request took, and for how many it was paused."""

    rate: float
    p50: float
    p99: float
    paused: float


class Generator:
    """A running load generator. `port` is that of its upstream."""

    def __init__(self, process: subprocess.Popen[str], commands: socket.socket, port: int, directory: Path) -> None:
        assert process.stdout is not None
        self._commands = commands
        self._stdout: IO[str] = process.stdout
        self._directory = directory
        self.port = port
        self.pid = process.pid

    def run(self, port: int, load: Load) -> Timing:
        """Send the requests to a port and wait for the last response. Raises LoadError."""
        return self._run(port, load, ())

    def run_on(self, socks: Sequence[socket.socket], request: bytes, count: int) -> Timing:
        """Send `count` requests on connections that stay open, and wait for the last response. Raises LoadError.

        No more than 253 connections.
        """
        return self._run(0, Load(request, count, len(socks)), [sock.fileno() for sock in socks])

    def _run(self, port: int, load: Load, descriptors: Sequence[int]) -> Timing:
        path = self._directory / "request"
        path.write_bytes(load.request)
        command = f"{load.mode} {port} {path} {load.count} {load.connections} {load.rate} {load.seed}\n"
        socket.send_fds(self._commands, [command.encode()], descriptors)
        line = self._stdout.readline()
        if not line or line.startswith("error"):
            raise LoadError(line.strip() or "the load generator ended")
        return Timing(*map(float, line.split()))


def missing() -> str | None:
    """Return why small requests cannot be measured here, or None."""
    if _compiler() is None:
        return "there is no C compiler (gcc or cc) for the load generator"
    if len(os.sched_getaffinity(0)) < 2:
        return "there is only one core, and proxy and load generator need one each"
    return None


@contextlib.contextmanager
def run_generator() -> Iterator[Generator]:
    """Compile the load generator and run it on the first core until the end of the block."""
    compiler = _compiler()
    if compiler is None:
        raise RuntimeError(missing())
    with tempfile.TemporaryDirectory(prefix="bench-load-") as name:
        program = Path(name) / "load_generator"
        subprocess.run([compiler, "-O2", "-o", program, SOURCE, "-lm"], check=True)
        port = free_port()
        commands, stdin = socket.socketpair()
        with stdin:
            process = subprocess.Popen(
                [program, str(port)], stdin=stdin.fileno(), stdout=subprocess.PIPE, text=True, start_new_session=True
            )
        os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
        try:
            generator = Generator(process, commands, port, Path(name))
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise RuntimeError(f"the load generator did not start: exit code {process.wait(5)}")
            yield generator
        finally:
            commands.close()
            process.kill()
            process.communicate()


def _compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")

"""Starts the gateway and its peers, each with one worker and its best settings, and reads what they cost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.bench.before import ROOT, environment_of
from tests.bench.interpreter import venv_directory
from tests.bench.peer_configs import ENVOY, HAPROXY, NGINX, PLAIN, TLS, gateway_config
from tests.ports import free_port

#: The gateway with `lanes: copy`: every exchange takes the normal path.
COPY = "lanes: copy"
#: The gateway with the modules of deploy/compile.py compiled.
COMPILED = "compiled"
#: The gateway in a process that can be profiled.
PROFILED, PROFILED_COPY = "profiled", "profiled, lanes: copy"


@dataclass(frozen=True)
class Peer:
    """A running proxy."""

    name: str
    port: int
    pid: int
    access_log: Path | None = None

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far."""
        return sum(cpu_seconds(pid) for pid in self.pids())

    def peak_bytes(self) -> int:
        """Sum of the peak resident sets of its processes."""
        return sum(_peak(pid) for pid in self.pids())

    def empty_log(self) -> None:
        """Empty the access log: all peers open it for appending."""
        if self.access_log is not None:
            os.truncate(self.access_log, 0)

    def pids(self) -> list[int]:
        """The process and what it started."""
        found = [self.pid]
        for pid in found:
            children = Path(f"/proc/{pid}/task/{pid}/children")
            with contextlib.suppress(OSError):
                found += map(int, children.read_text().split())
        return found


@dataclass(frozen=True)
class Setting:
    """What a run has in common: the peers, the interpreter of the Python ones, and the trees of two of them."""

    peers: tuple[str, ...]
    python: str
    before: Path = ROOT
    compiled: Path = ROOT
    #: How often all peers are started, and how many measured rounds each start has.
    starts: int = 3
    rounds: int = 3

    def run(
        self, name: str, up: int, files: Path, certificate: Path | None = None
    ) -> contextlib.AbstractContextManager[Peer]:
        """Run one of the peers, see `run_peer`."""
        tree = {"before": self.before, COMPILED: self.compiled}.get(name, ROOT)
        settings = {"lanes": "copy"} if name in (COPY, PROFILED_COPY) else {}
        return run_peer(name, up, files, certificate, tree=tree, settings=settings, python=self.python)


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process like Ctrl-C, so that it ends the peers it started."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


@contextlib.contextmanager
def cores_apart(*peers: Peer) -> Iterator[None]:
    """Keep proxies to one core and this process, with its clients and upstreams, to another, if there are two.

    On shared cores the cost of a wake-up falls on either process by chance, and a thread that computes beside the
    loop is interrupted for the others.
    """
    cores = os.sched_getaffinity(0)
    if len(cores) > 1:
        ours, theirs, *_ = ({core} for core in sorted(cores))
        keep_to(theirs, [pid for peer in peers for pid in peer.pids()])
        keep_to(ours, [os.getpid()])
    try:
        yield
    finally:
        keep_to(cores, [os.getpid(), *(pid for peer in peers for pid in peer.pids())])


@contextlib.contextmanager
def start_peers(setting: Setting, up: int) -> Iterator[list[Peer]]:
    """Start the peers in front of port `up`, each kept to the last core."""
    core = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        os.chmod(directory, 0o755)
        peers = []
        for name in setting.peers:
            proxy = setting.run(name, up, Path(directory))
            peers.append(stack.enter_context(proxy))
        for peer in peers:
            keep_to({core}, peer.pids())
        yield peers


def keep_to(cores: set[int], pids: list[int]) -> None:
    """Keep all threads of these processes to these cores."""
    for thread in (int(path.name) for pid in pids for path in Path(f"/proc/{pid}/task").iterdir()):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, cores)


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of all threads of a process, ended ones included, with nanosecond resolution.

    The clock id is the kernel's MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED): the sum of the first numbers of
    /proc/PID/task/*/schedstat and of the same of threads that ended. /proc/PID/stat counts ticks of 10 ms, which is
    several percent of one measurement.
    """
    return time.clock_gettime((~pid << 3) | 2)


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def available() -> list[str]:
    """Return the peers this machine has."""
    names = ["gateway", "naive", "kernel alone", "aiohttp alone"]
    names += [name for name in ("nginx", "haproxy") if _which(name)]
    return [*names, "envoy"] if _which("envoy") else names


def _which(name: str) -> str | None:
    here = f"{Path(sys.executable).parent}:{venv_directory() / 'bin'}"
    return shutil.which(name) or shutil.which(name, path=f"{here}:/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def run_peer(
    name: str,
    up: int,
    files: Path,
    certificate: Path | None = None,
    *,
    tree: Path = ROOT,
    settings: Mapping[str, Any] = MappingProxyType({}),
    python: str = sys.executable,
) -> Iterator[Peer]:
    """Run one proxy in front of port `up`, serving `files`; with a certificate, TLS on both sides.

    `settings` replace keys of the gateway's config. `tree` is the checkout whose Python code it runs: the gateway of
    another commit for the peer `before`. `python` runs the peers that are Python programs. Each peer writes an access
    log to a file.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as directory, (Path(directory) / "access.log").open("ab") as log:
        os.chmod(directory, 0o755)
        process = subprocess.Popen(
            _command(name, (port, up), Path(directory), files, certificate, settings=settings, python=python),
            cwd=tree,
            env=environment_of(tree) | ({"SSL_CERT_FILE": str(certificate)} if certificate else {}),
            # Where the gateway and HAProxy write their access log; nginx and Envoy open the file themselves.
            stdout=log,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_port(name, process, port)
            yield Peer(name, port, process.pid, Path(log.name))
        finally:
            process.terminate()
            process.wait()


def _command(
    name: str,
    ports: tuple[int, int],
    directory: Path,
    files: Path,
    certificate: Path | None,
    *,
    settings: Mapping[str, Any],
    python: str,
) -> list[str]:
    port, up = ports
    texts = {"nginx": NGINX, "haproxy": HAPROXY, "envoy": ENVOY}
    config = directory / "conf.yaml"
    if name in ("gateway", "before", COMPILED, COPY, PROFILED, PROFILED_COPY):
        config.write_text(json.dumps({**gateway_config((port, up), directory, files, certificate), **settings}))
        module = "tests.bench.profiled" if name in (PROFILED, PROFILED_COPY) else "gateway"
        return [python, "-m", module, "run", "--config", str(config)]
    if name == "naive":
        return [
            python,
            "-m",
            "tests.bench.naive",
            str(port),
            str(up),
            *([str(certificate)] if certificate else []),
        ]
    if name.endswith(" alone"):
        kind = name.removesuffix(" alone")
        return [python, "-m", "tests.bench.alone", kind, str(port), str(up), str(files)]
    tls = {key: text.format(pem=certificate) for key, text in (TLS if certificate else PLAIN).get(name, {}).items()}
    config.write_text(texts[name].format(dir=directory, port=port, up=up, files=files, **tls))
    program = _which(name) or name
    if name == "nginx":
        return [program, "-c", str(config)]
    if name == "haproxy":
        return [program, "-db", "-f", str(config)]
    base = str(os.getpid() % 30000 + port % 1000)
    return [program, "-c", str(config), "--concurrency", "1", "--base-id", base, "--log-level", "off"]


def _wait_port(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"{name} exited with {process.returncode} before it accepted connections") from None
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
            continue
        return

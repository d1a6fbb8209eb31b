"""One process, two workers, and two gateways of one process each: what the benchmark of workers compares."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.bench.peers import Peer, cpu_seconds, run_peer
from tests.bench.supervisor import wait_workers

ONE, TWO, GATEWAYS = "1", "2", "1 + 1"
#: The workers of each gateway, by what the tables show.
SETUPS: Mapping[str, Sequence[int]] = {ONE: [1], TWO: [2], GATEWAYS: [1, 1]}
_ACCEPT_SECONDS = 5.0


@dataclass(frozen=True)
class Setup:
    """Gateways that get the same work together."""

    name: str
    peers: Sequence[Peer]

    def servers(self) -> list[int]:
        """Return the processes that serve."""
        # After supervisor and template; or the only one.
        return [pid for peer in self.peers for pid in peer.pids()[2:] or [peer.pid]]

    def pids(self) -> list[int]:
        """Return all processes."""
        return [pid for peer in self.peers for pid in peer.pids()]

    def cpu_seconds(self) -> dict[int, float]:
        """Return the CPU seconds so far, by process."""
        return {pid: cpu_seconds(pid) for pid in self.pids()}


@contextlib.contextmanager
def run_setups(up: int, python: str, settings: Mapping[str, Any] = MappingProxyType({})) -> Iterator[list[Setup]]:
    """Run all setups in front of port `up`; `settings` replace keys of the config."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:

        def start(count: int) -> Peer:
            running = run_peer("gateway", up, Path(directory), settings={**settings, "workers": count}, python=python)
            peer = stack.enter_context(running)
            wait_workers(peer, count)
            return peer

        yield [Setup(name, [start(count) for count in counts]) for name, counts in SETUPS.items()]


@contextlib.contextmanager
def connect(setup: Setup, count: int) -> Iterator[list[list[socket.socket]]]:
    """Open `count` connections, as many to each gateway; yield those of each process that serves."""
    with contextlib.ExitStack() as stack:
        groups: dict[int, list[socket.socket]] = {}
        for peer in setup.peers:
            address = ("127.0.0.1", peer.port)
            socks = [stack.enter_context(socket.create_connection(address)) for _ in range(count // len(setup.peers))]
            for sock, pid in zip(socks, _wait_owners(peer, socks), strict=True):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                groups.setdefault(pid, []).append(sock)
        yield list(groups.values())


def _wait_owners(peer: Peer, socks: Sequence[socket.socket]) -> list[int]:
    """Wait until each connection is accepted; return the process that has each."""
    deadline = time.monotonic() + _ACCEPT_SECONDS
    while True:
        owners = _owners(peer)
        found = [owners[port] for sock in socks if (port := sock.getsockname()[1]) in owners]
        if len(found) == len(socks):
            return found
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all of {len(socks)} connections are accepted after {_ACCEPT_SECONDS:.0f} s")
        time.sleep(0.01)


def _owners(peer: Peer) -> dict[int, int]:
    """Return the process that has accepted each connection to a peer, by the port of the client."""
    # Thousands of lines after a while: only those of the peer are taken apart.
    end = f":{peer.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if end in line]
    clients = {f"socket:[{row[9]}]": int(row[2][-4:], 16) for row in rows if row[1].endswith(end)}
    owners = {}
    for pid in peer.pids():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            # It may be closed meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if (client := clients.get(os.readlink(link))) is not None:
                    owners[client] = pid
    return owners

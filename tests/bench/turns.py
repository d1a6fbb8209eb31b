"""Small requests to one process of a gateway at a time: each then has a core and its caches alone."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.bench import load
from tests.bench.peers import Peer


def ask_in_turns(peers: Sequence[Peer], request: bytes, count: int, connections: int) -> None:
    """Send `count` requests over `connections` connections, those of one process after those of another."""
    with contextlib.ExitStack() as stack:
        groups: dict[int, list[socket.socket]] = {}
        for peer in peers:
            address = ("127.0.0.1", peer.port)
            socks = [stack.enter_context(socket.create_connection(address)) for _ in range(connections // len(peers))]
            for sock in socks:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # With its response each is accepted.
            load.ask_on(socks, request, len(socks))
            for sock, pid in zip(socks, _owners(peer, socks), strict=True):
                groups.setdefault(pid, []).append(sock)
        for socks in groups.values():
            load.ask_on(socks, request, (count - connections) // len(groups))


def _owners(peer: Peer, socks: Sequence[socket.socket]) -> list[int]:
    """Return the process that has accepted each connection."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[2]: row[9] for row in rows if row[1].endswith(f":{peer.port:04X}")}
    owners = {}
    for pid in peer.pids():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            # It may be closed meanwhile.
            with contextlib.suppress(FileNotFoundError):
                owners[os.readlink(link)] = pid
    return [owners[f"socket:[{inodes[f'0100007F:{sock.getsockname()[1]:04X}']}]"] for sock in socks]

"""Constant memory: 2 GiB in each direction through a gateway process whose resident set is measured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.leaks import stray_lines
from tests.peers import form, forward_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
GIB = 2**30
SIZE = 2 * GIB
MAX_GROWTH_BYTES = 32 * 2**20
BLOCK = os.urandom(2**20)


def memory(pid: int, key: str) -> int:
    """Return VmRSS (now) or VmHWM (peak) of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(key)


@contextlib.asynccontextmanager
async def gateway_process(
    config: dict[str, Any], directory: Path, *, ulimit: str = ""
) -> AsyncIterator[tuple[int, int]]:
    """Run a gateway process, perhaps with a limit of the shell; yield its pid and port."""
    config = {"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}, **config}
    path = directory / "gateway.json"
    path.write_text(json.dumps(config))
    errors = directory / "stderr"
    with errors.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(("sh", "-c", f'ulimit {ulimit}; exec "$@"', "sh") if ulimit else ()),
            sys.executable,
            "-m",
            "gateway",
            "run",
            "--config",
            str(path),
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    try:
        line = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
        yield process.pid, int(line["message"].split(",")[0].rpartition(":")[2])
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = await process.communicate()
        (directory / "log").write_bytes(output)
    assert not list(stray_lines(output.decode() + errors.read_text()))


@contextlib.contextmanager
def plain_server(serve: Any) -> Iterator[int]:
    """Run a blocking server in a thread of the test process; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_accept, args=(listener, serve), daemon=True)
        thread.start()
        yield listener.getsockname()[1]


def _accept(listener: socket.socket, serve: Any) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(OSError):
            serve(connection)


def read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def length_of(head: bytes) -> int:
    return int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])


def sink(connection: socket.socket) -> None:
    """Read one body and respond with its length."""
    head, rest = read_head(connection)
    left = length_of(head) - len(rest)
    buffer = bytearray(2**20)
    while left:
        left -= connection.recv_into(buffer, min(left, len(buffer)))
    text = str(length_of(head)).encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(text) + text)


def source(connection: socket.socket) -> None:
    """Send one body of SIZE bytes."""
    read_head(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % SIZE)
    for _ in range(SIZE // len(BLOCK)):
        connection.sendall(BLOCK)


def send_form(port: int, target: str, size: int = SIZE) -> bytes:
    """Upload one file as multipart and return the response."""
    head, tail = form(('name="f"; filename="big.bin"', b"@")).split(b"@")
    with socket.create_connection(("127.0.0.1", port), timeout=120) as sock:
        sock.sendall(
            f"POST {target} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n"
            f"Content-Length: {len(head) + size + len(tail)}\r\n"
            "Content-Type: multipart/form-data; boundary=XBOUNDARYX\r\n\r\n".encode()
        )
        sock.sendall(head)
        for _ in range(size // len(BLOCK)):
            sock.sendall(BLOCK)
        sock.sendall(tail)
        response = b""
        while piece := sock.recv(65536):
            response += piece
        return response


def receive(port: int, target: str) -> int:
    """Download and return the number of body bytes received."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as sock:
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n".encode())
        _, rest = read_head(sock)
        count = len(rest)
        buffer = bytearray(2**20)
        while size := sock.recv_into(buffer):
            count += size
        return count


async def test_two_gib_up_and_down_through_forward_stay_within_32_mib(tmp_path: Path) -> None:
    with plain_server(sink) as up, plain_server(source) as down:
        config = forward_config([f"http://127.0.0.1:{up}"])
        config["upstreams"]["down"] = {"endpoints": [f"http://127.0.0.1:{down}"]}
        config["routes"].append({"name": "d", "match": {"path": "/down"}, "forward": {"upstream": "down"}})
        async with gateway_process(config, tmp_path) as (pid, port):
            idle = memory(pid, "VmRSS")
            response = await asyncio.to_thread(send_form, port, "/")
            assert int(response.rpartition(b"\r\n")[2]) > SIZE
            assert await asyncio.to_thread(receive, port, "/down") == SIZE
            growth = memory(pid, "VmHWM") - idle
            print(f"idle {idle / 2**20:.1f} MiB, peak {(growth + idle) / 2**20:.1f} MiB")
            assert growth < MAX_GROWTH_BYTES


async def test_two_gib_stored_and_served_stay_within_32_mib(tmp_path: Path) -> None:
    directory = tmp_path / "in"
    directory.mkdir()
    config = {
        "routes": [
            {"name": "up", "match": {"prefix": "/up"}, "store": {"directory": str(directory)}},
            {"name": "down", "match": {"prefix": "/files/"}, "files": {"directory": str(directory)}},
        ]
    }
    async with gateway_process(config, tmp_path) as (pid, port):
        idle = memory(pid, "VmRSS")
        response = await asyncio.to_thread(send_form, port, "/up")
        assert b" 201 Created" in response
        assert await asyncio.to_thread(receive, port, "/files/big.bin") == SIZE
        growth = memory(pid, "VmHWM") - idle
        print(f"idle {idle / 2**20:.1f} MiB, peak {(growth + idle) / 2**20:.1f} MiB")
        (directory / "big.bin").unlink()
        assert growth < MAX_GROWTH_BYTES


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_memory_of_sixty_four_concurrent_uploads_is_limited(tmp_path: Path) -> None:
    """The memory of a transfer does not depend on its size: it is at most a few chunks. The test prints it."""
    with plain_server(_threaded(sink)) as up:
        async with gateway_process(forward_config(f"http://127.0.0.1:{up}"), tmp_path) as (pid, port):
            idle = memory(pid, "VmRSS")
            loop = asyncio.get_running_loop()
            with ThreadPoolExecutor(64) as clients:
                uploads = [loop.run_in_executor(clients, send_form, port, "/", GIB) for _ in range(64)]
                await asyncio.gather(*uploads)
            growth = memory(pid, "VmHWM") - idle
            print(f"idle {idle / 2**20:.1f} MiB, {growth / 64 / 2**20:.2f} MiB per transfer")
            assert idle + growth < 80 * 2**20


def sink_chunked(connection: socket.socket) -> None:
    """Read one chunked body after another and respond to each with its length."""
    with connection.makefile("rb") as stream:
        while True:
            while (line := stream.readline()) != b"\r\n":
                if not line:
                    return
            size = 0
            while step := int(stream.readline(), 16):
                left = step + 2
                while left:
                    left -= len(stream.read(min(left, 2**20)))
                size += step
            stream.readline()
            text = str(size).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)


def send_files(port: int, count: int, size: int) -> bytes:
    """Upload `count` files of `size` bytes each in one form and return the response."""
    head, tail = form(('name="f"; filename="big.bin"', b"@")).split(b"@")
    with socket.create_connection(("127.0.0.1", port), timeout=120) as sock:
        sock.sendall(
            b"POST /split HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Length: %d\r\n"
            b"Content-Type: multipart/form-data; boundary=XBOUNDARYX\r\n\r\n"
            % (count * (len(head) + size + 2) - 2 + len(tail))
        )
        for number in range(count):
            sock.sendall((b"\r\n" if number else b"") + head)
            for _ in range(size // len(BLOCK)):
                sock.sendall(BLOCK)
        sock.sendall(tail)
        response = b""
        while piece := sock.recv(65536):
            response += piece
        return response


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_ten_gib_in_a_hundred_files_are_split_within_32_mib(tmp_path: Path) -> None:
    count, size = 100, 10 * GIB // 100 // len(BLOCK) * len(BLOCK)
    config: dict[str, Any] = {
        "routes": [
            {
                "name": "s",
                "match": {"prefix": "/"},
                "split": {"upstream": "up", "body": "raw"},
                "filters": ["digest"],
                "limits": {"max_parts": count, "max_body": "20GiB"},
            }
        ]
    }
    with plain_server(_threaded(sink_chunked)) as up:
        config["upstreams"] = {"up": {"endpoints": [f"http://127.0.0.1:{up}"]}}
        async with gateway_process(config, tmp_path) as (pid, port):
            idle = memory(pid, "VmRSS")
            response = await asyncio.to_thread(send_files, port, count, size)
            parts = json.loads(response.partition(b"\r\n\r\n")[2])["parts"]
            assert [part["body"] for part in parts] == [str(size)] * count
            growth = memory(pid, "VmHWM") - idle
            print(f"idle {idle / 2**20:.1f} MiB, peak {(growth + idle) / 2**20:.1f} MiB")
            assert growth < MAX_GROWTH_BYTES


def _threaded(serve: Any) -> Any:
    def begin(connection: socket.socket) -> None:
        copy = connection.dup()
        threading.Thread(target=_serve_and_close, args=(copy, serve), daemon=True).start()

    return begin


def _serve_and_close(connection: socket.socket, serve: Any) -> None:
    with connection:
        serve(connection)

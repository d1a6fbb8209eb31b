"""What an honest client waits for while others attack: `python -m tests.bench.hostile [--seconds 4] [--clients 1 50]`.

The gateway, both upstreams, the attackers and the honest client are processes of their own. The honest client sends a
GET through the gateway, then a GET to /healthz, each on a new connection; the table has their times. Attackers and
hostile upstream take all the CPU time that they get: on two cores, most of the time is waiting for a core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import multiprocessing
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.ports import free_port

_BLOB_BYTES: Final = 2**18
_TINY: Final = b"1\r\nx\r\n"
_LOOK_ALIKE: Final = b"--x"
_PART: Final = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\ny'
_TINY_PART: Final = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n'
_FORM: Final = b"Content-Type: multipart/form-data; boundary=x\r\n"
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n\r\n"
_SIZED: Final = b"Content-Length: 1000000000000\r\n\r\n"
_INTERIM: Final = b"HTTP/1.1 102 \r\n\r\n"

Attack = tuple[bytes, bytes]


def _post(path: str, headers: bytes, body: bytes, repeated: bytes) -> Attack:
    head = f"POST {path} HTTP/1.1\r\nHost: gw\r\n".encode() + headers + body
    return head, repeated * (_BLOB_BYTES // len(repeated))


def _get(path: str) -> Attack:
    return f"GET {path} HTTP/1.1\r\nHost: gw\r\n\r\n".encode(), b""


def attacks(origin_port: int) -> dict[str, Attack]:
    """Return what each kind of attacker sends: once, and then again and again."""
    form = _FORM + _SIZED
    return {
        "upload, 1-byte chunks": _post("/up", _CHUNKED, b"", _TINY),
        "upload, chunks of 1 and 2 bytes": _post("/up", _CHUNKED, b"", _TINY + b"2\r\nxy\r\n"),
        "look-alikes, inspect": _post("/up", form, _PART, _LOOK_ALIKE),
        "look-alikes, strict": _post("/strict", form, _PART, _LOOK_ALIKE),
        "look-alikes, store": _post("/store", form, _PART, _LOOK_ALIKE),
        "look-alikes, body: raw": _post("/raw", form, _PART, _LOOK_ALIKE),
        "tiny parts, inspect": _post("/up", form, b"", _TINY_PART),
        "tiny parts, strict": _post("/strict", form, b"", _TINY_PART),
        "empty gzip members": _post("/gzip", form, _PART[:-1], gzip.compress(b"")),
        "pipelined GETs": (b"", b"GET /get HTTP/1.1\r\nHost: gw\r\n\r\n" * 8000),
        "pipelined 404s": (b"", b"GET /none HTTP/1.1\r\nHost: gw\r\n\r\n" * 8000),
        "upstream, 1-byte chunks": _get("/hostile/tiny"),
        "fetch, 1-byte chunks": _get(f"/fetch/http://127.0.0.1:{origin_port}/tiny"),
        "upstream, endless 1xx": _get("/hostile/interim"),
    }


def _config(gateway: int, ops: int, honest: int, origin: int, directory: str) -> dict[str, object]:
    limits = {"max_body": "unlimited", "max_part": "unlimited", "max_parts": 10**9}
    forward: dict[str, dict[str, object]] = {
        "/": {},
        "/strict": {"multipart": "strict"},
        "/raw": {"body": "raw"},
    }
    routes: list[dict[str, object]] = [
        {"name": f"forward{number}", "match": {"prefix": path}, "forward": {"upstream": "up", **keys}, "limits": limits}
        for number, (path, keys) in enumerate(forward.items())
    ]
    store = {"store": {"directory": directory}, "limits": {**limits, "max_part": "8MiB"}}
    routes += [
        {"name": "hostile", "match": {"prefix": "/hostile"}, "forward": {"upstream": "hostile"}},
        {"name": "store", "match": {"prefix": "/store"}, **store},
        {"name": "gzip", "match": {"prefix": "/gzip"}, **store, "filters": ["decompress"]},
        {
            "name": "fetch",
            "match": {"prefix": "/fetch/"},
            "fetch": {"allow": [f"http://127.0.0.1:{origin}/"], "private_networks": "allow"},
        },
    ]
    return {
        "listen": f"127.0.0.1:{gateway}",
        "ops": {"listen": f"127.0.0.1:{ops}"},
        "upstreams": {
            "up": {"endpoints": [f"http://127.0.0.1:{honest}"]},
            "hostile": {"endpoints": [f"http://127.0.0.1:{origin}"]},
        },
        "routes": routes,
    }


class _Origin(asyncio.Protocol):
    """Responds to GET; attacks where the target asks for it; drops the bodies of uploads without a response."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._blob = b""
        self._has_head = False

    def data_received(self, data: bytes) -> None:
        if self._has_head and not data.startswith(b"GET "):
            return
        self._has_head = True
        target = data.split(b" ", 2)[1]
        if target.endswith(b"/tiny"):
            self._transport.write(b"HTTP/1.1 200 OK\r\n" + _CHUNKED)
            self._blob = _TINY * (_BLOB_BYTES // len(_TINY))
        elif target.endswith(b"/interim"):
            self._blob = _INTERIM * (_BLOB_BYTES // len(_INTERIM))
        elif data.startswith(b"GET "):
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        self.resume_writing()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        while self._blob and not self._is_full and not self._transport.is_closing():
            self._transport.write(self._blob)


def _run_origin(port: int) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Origin, "127.0.0.1", port, backlog=512)
        await server.serve_forever()

    asyncio.run(serve())


def _run_attackers(port: int, kinds: list[Attack], clients: int) -> None:
    async def attack(head: bytes, blob: bytes) -> None:
        """Attack until this process is ended; connect again when the gateway has had enough."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(OSError), socket.socket() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, ("127.0.0.1", port))
                await loop.sock_sendall(sock, head)
                dropping = asyncio.ensure_future(drop(sock))
                try:
                    while blob and not dropping.done():
                        await loop.sock_sendall(sock, blob)
                    await dropping
                finally:
                    dropping.cancel()
            await asyncio.sleep(0.01)

    async def drop(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while await asyncio.get_running_loop().sock_recv(sock, _BLOB_BYTES):
                pass

    async def attack_all() -> None:
        await asyncio.gather(*(attack(*kinds[index % len(kinds)]) for index in range(clients)))

    asyncio.run(attack_all())


@contextlib.contextmanager
def _process(target: Callable[..., None], *arguments: object) -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _seconds_of(port: int, path: str) -> float:
    """Return how long a GET takes. Raises OSError after five seconds."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n".encode())
        if not sock.recv(4096).startswith(b"HTTP/1.1 200"):
            raise ConnectionError("not 200")
    return time.monotonic() - began


def _measure(port: int, path: str, seconds: float) -> str:
    """Return p50, p99 and the maximum in milliseconds, and how many requests failed."""
    times: list[float] = []
    failed, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            times.append(_seconds_of(port, path) * 1000)
        except OSError:
            failed += 1
        time.sleep(0.005)
    if len(times) < 2:
        return f"{failed} failed"
    p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
    return f"{statistics.median(times):.1f} / {p99:.1f} / {max(times):.1f}" + (f", {failed} failed" if failed else "")


@contextlib.contextmanager
def _gateway(honest: int, origin: int, directory: Path) -> Iterator[tuple[int, int]]:
    port, ops = free_port(), free_port()
    (directory / "stored").mkdir()
    config = directory / "gateway.json"
    config.write_text(json.dumps(_config(port, ops, honest, origin, str(directory / "stored"))))
    command = [sys.executable, "-m", "gateway", "run", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 10
            while time.monotonic() < until:
                with contextlib.suppress(OSError):
                    _seconds_of(port, "/get")
                    break
                time.sleep(0.05)
            yield port, ops
        finally:
            process.kill()


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 50])
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    honest, origin = free_port(), free_port()
    kinds = {name: [kind] for name, kind in attacks(origin).items()}
    kinds["all together"] = list(attacks(origin).values())
    print("Milliseconds, p50 / p99 / max.\n\n| attack | clients | GET | /healthz |\n|---|---|---|---|")
    with _process(_run_origin, honest), _process(_run_origin, origin):
        for name, chosen in {"none": [], **kinds}.items():
            if options.only not in name:
                continue
            for clients in options.clients if chosen else [0]:
                count = max(clients, len(chosen))
                with (
                    tempfile.TemporaryDirectory() as directory,
                    _gateway(honest, origin, Path(directory)) as (port, ops),
                    _process(_run_attackers, port, chosen, count) if chosen else contextlib.nullcontext(),
                ):
                    # The attackers' process takes a moment to start.
                    time.sleep(1.0)
                    row = [_measure(port, "/get", options.seconds), _measure(ops, "/healthz", options.seconds)]
                print(f"| {name} | {count} | {row[0]} | {row[1]} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""No blocking call on the event loop: not an import, not a file, not a lookup, whatever clients ask for.

Every action, lane and filter is used once, for the first time in its process, so that what is loaded on first use (MIME
types, codecs, IDNA tables, plug-ins) is seen, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import re
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.leaks import stray_lines
from tests.peers import OK, TIMEOUT_SECONDS, RawUpstream, Wire, chunked, form, post, read_request, responding
from tests.test_reload import write_certificate

pytestmark = pytest.mark.slow
BIG = os.urandom(1_500_000)


def file(name: str, data: bytes) -> tuple[str, bytes]:
    return f'name="file"; filename="{name}"', data


FORM = form(("name=note", b"n"), file("a.bin", b"a" * 70_000), file("ü.txt", b"text"))
ONE_FILE = form(("name=note", b"n"), file("b.bin", BIG))
FILTERS: dict[str, list[Any]] = {
    "digest": [{"digest": {"algorithm": "sha256"}}],
    "blake": [{"digest": {"algorithm": "blake2b"}}],
    "blake3": [{"digest": {"algorithm": "blake3"}}],
    "crc": [{"digest": {"algorithm": "crc32c"}}],
    "sniff": [{"sniff": {"allow": ["*"]}}],
    "throttle": [{"throttle": {"rate": "1GB/s"}}],
    "compress": ["compress"],
    "decompress": ["decompress"],
    "scan": [{"scan": {"clamd": "localhost:1", "on_error": "pass"}}],
}
FORWARDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "opaque": {"multipart": "opaque"},
    "strict": {"multipart": "strict"},
    "raw": {"body": "raw"},
    "wrap": {"body": "multipart"},
    "headers": {"form_fields": {"send": "headers"}, "multipart": "strict"},
}


def config(up: RawUpstream, origin: RawUpstream, directory: Path, **keys: Any) -> dict[str, Any]:
    named = f"http://localhost:{up.port}"
    there = {"directory": str(directory)}
    allowed = [f"http://localhost:{origin.port}/", "http://xn--bcher-kva.test/"]
    actions: dict[str, dict[str, Any]] = {
        **{name: {"forward": {"upstream": "up", **keys}} for name, keys in FORWARDS.items()},
        **{f"f-{name}": {"forward": {"upstream": "up"}, "filters": filters} for name, filters in FILTERS.items()},
        **{f"s-{name}": {"store": there, "filters": filters} for name, filters in FILTERS.items()},
        "split": {"split": {"upstream": "named"}},
        "split-raw": {"split": {"upstream": "up", "body": "raw"}},
        "named": {"forward": {"upstream": "named"}},
        "lost": {"forward": {"upstream": "lost"}},
        "mirror": {"forward": {"upstream": "up", "mirror": {"upstream": "named"}}},
        "tee": {"forward": {"upstream": "up", "mirror": there}},
        "chosen": {"match": {"path": "/chosen", "form_fields": {"note": "n*"}}, "forward": {"upstream": "up"}},
        "reject": {"store": {**there, "if_exists": "reject"}},
        "replace": {"store": {**there, "if_exists": "replace"}},
        "uuid": {"store": {**there, "name": "uuid"}},
        "files": {"files": there},
        "fetch": {"fetch": {"allow": allowed, "private_networks": "allow"}},
        "public": {"fetch": {"allow": allowed}},
    }
    routes = [{"name": name, "match": {"prefix": f"/{name}"}, **action} for name, action in actions.items()]
    return {
        "listen": "127.0.0.1:0",
        "ops": {"listen": "127.0.0.1:0"},
        "drain_timeout": "2s",
        "upstreams": {
            "up": {"endpoints": [up.url]},
            "named": {"endpoints": [named], "health": {"path": "/", "interval": "50ms"}},
            "lost": {"endpoints": ["http://does-not-exist.invalid:80", "http://127.0.0.1:1"]},
        },
        "routes": routes,
        **keys,
    }


def requests(origin: RawUpstream) -> list[bytes]:
    """Return requests for everything; what they get does not matter here."""
    get = "{} {} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n{}\r\n"
    chunked_head = "POST {} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n{}\r\n"
    kind = "Content-Type: multipart/form-data; boundary=XBOUNDARYX\r\n"
    made = []
    for path in [f"/{name}" for name in FORWARDS] + ["/split", "/split-raw", "/mirror", "/tee", "/chosen", "/named"]:
        made += [
            get.format("GET", path, "").encode(),
            post(FORM, target=path),
            post(ONE_FILE, target=path),
            post(BIG, target=path, content_type="text/plain; charset=utf-8"),
            chunked_head.format(path, kind).encode() + chunked(FORM[:1000], FORM[1000:]),
            chunked_head.format(path, "Expect: 100-continue\r\n").encode() + chunked(BIG),
            post(FORM[:-9], target=path),
        ]
    for name in FILTERS:
        packed = form(file("a.gz", gzip.compress(BIG)))
        made += [
            post(packed, target=f"/f-{name}"),
            post(packed, target=f"/s-{name}"),
            post(ONE_FILE, target=f"/s-{name}"),
        ]
    for path in ("/reject", "/replace", "/uuid", "/uuid/x%20y.tar.gz"):
        made += [post(FORM, target=path), post(FORM, target=path), post(BIG, target=path, content_type="a/b")]
    for name in ("a.bin", "b.bin", "big.tar.gz", "page.html", "missing", "%C3%BC.txt", ".hidden", "%00", "n" * 300):
        for headers in ("", "Range: bytes=1-5\r\n", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n"):
            made += [get.format(method, f"/files/{name}", headers).encode() for method in ("GET", "HEAD")]
    for prefix in ("/fetch/", "/public/"):
        for target in (f"http://localhost:{origin.port}/a", f"http://localhost:{origin.port}/redirect"):
            made.append(get.format("GET", prefix + target, "").encode())
    made += [
        get.format("GET", "/fetch/http://xn--bcher-kva.test/", "").encode(),
        get.format("GET", "/lost", "").encode(),
        get.format("GET", "/nowhere", "Accept: text/html\r\n").encode(),
        get.format("BREW", "/plain", "").encode(),
        get.format("GET", "/plain", "Bad Header: x\r\n").encode(),
        get.format("OPTIONS", "*", "").encode(),
        b"\x16\x03\x01\x00\x05hello\r\n\r\n",
        b"GET /plain HTTP/1.1\r\nHost: b\xc3\xbccher.test\r\n\r\n",
        b"GET /plain HTTP/1.1\r\nHost: gw\r\nForwarded: for=192.0.2.1\r\nConnection: close\r\n\r\n",
    ]  # fmt: skip
    return made


async def origin_script(wire: Wire) -> None:
    while True:
        head, _ = await read_request(wire)
        if b"/redirect" in head:
            await wire.send(b"HTTP/1.1 302 Found\r\nLocation: a?x=1\r\nContent-Length: 0\r\n\r\n")
        else:
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BIG) + BIG)


class AuditedGateway:
    """A process of tests/audited_gateway.py."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def start(self) -> None:
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "tests.audited_gateway", "run", "--config", str(self._path))
        self.process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
        self.output: list[str] = []
        self.errors: list[str] = []
        self._readers = [
            asyncio.create_task(self._collect(self.process.stdout, self.output), name="stdout"),
            asyncio.create_task(self._collect(self.process.stderr, self.errors), name="stderr"),
        ]
        ready = await self.wait_for(r"listening on 127\.0\.0\.1:(\d+), ops on 127\.0\.0\.1:(\d+)")
        self.port, self.ops_port = int(ready[1]), int(ready[2])

    async def _collect(self, stream: Any, lines: list[str]) -> None:
        while line := await stream.readline():
            lines.append(line.decode())

    async def wait_for(self, pattern: str) -> re.Match[str]:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                for line in self.output:
                    if (found := re.search(pattern, line)) is not None:
                        return found
                assert self.process.returncode is None, self.errors
                await asyncio.sleep(0.01)

    async def ask(self, request: bytes, port: int, tls: ssl.SSLContext | None = None) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(request)
                await writer.drain()
            async with asyncio.timeout(TIMEOUT_SECONDS):
                with contextlib.suppress(ConnectionError):
                    return await reader.read()
            return b""
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    async def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        await self.process.wait()
        await asyncio.gather(*self._readers)


@contextlib.asynccontextmanager
async def audited(path: Path, settings: dict[str, Any]) -> AsyncIterator[AuditedGateway]:
    await asyncio.to_thread(path.write_text, json.dumps(settings))
    gateway = AuditedGateway(path)
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()
    assert gateway.errors == []
    assert not list(stray_lines("".join(gateway.output)))
    assert gateway.process.returncode == 0


@pytest.mark.timeout(120)
async def test_event_loop_neither_imports_nor_opens_nor_looks_up_anything(tmp_path: Path) -> None:
    directory = tmp_path / "in"
    directory.mkdir()
    for name in ("a.bin", "big.tar.gz", "page.html"):
        (directory / name).write_bytes(BIG if "big" in name else b"x" * 300)
    async with RawUpstream(responding(OK)) as up, RawUpstream(origin_script) as origin:
        settings = config(up, origin, directory)
        async with audited(tmp_path / "gateway.yaml", settings) as gateway:
            for request in requests(origin):
                await gateway.ask(request, gateway.port)
            api = [
                f"/api/{name}" for name in ("transfers", "transfers/1-1", "routes", "upstreams", "history", "snapshot")
            ]
            api += [f"/api/{name}" for name in ("failures", "config", "openapi.json")]
            for path in ("/metrics", "/healthz", "/readyz", "/nowhere", *api, "/drain"):
                get = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                assert await gateway.ask(get.encode(), gateway.ops_port)


@pytest.mark.timeout(60)
async def test_event_loop_reads_neither_config_nor_certificates_when_they_are_replaced(tmp_path: Path) -> None:
    await asyncio.to_thread(write_certificate, tmp_path, "gw")
    directory = tmp_path / "in"
    directory.mkdir()
    tls = {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with RawUpstream(responding(OK)) as up, RawUpstream(origin_script) as origin:
        settings = config(up, origin, directory, tls=tls)
        settings["upstreams"]["up"]["endpoints"] = [f"https://localhost:{up.port}"]
        path = tmp_path / "gateway.yaml"
        async with audited(path, settings) as gateway:
            get = b"GET /plain HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
            assert b"HTTP/1.1 504" in await gateway.ask(get, gateway.port, context)
            settings["upstreams"]["up"]["endpoints"] = [up.url]
            path.write_text(json.dumps(settings))
            gateway.process.send_signal(signal.SIGHUP)
            await gateway.wait_for("the config was replaced")
            assert b"ok" in await gateway.ask(get, gateway.port, context)
            path.write_text("routes: [")
            gateway.process.send_signal(signal.SIGHUP)
            await gateway.wait_for("the config stays as it was")
            assert b"ok" in await gateway.ask(get, gateway.port, context)

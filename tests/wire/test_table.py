"""The table of wire cases, run against the gateway, nginx and HAProxy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.bench.peers import free_port
from tests.conftest import require_tool
from tests.peers import RawUpstream, Wire, forward_config, run_gateway
from tests.wire.table import TABLE, Case

#: A side that says nothing more for this long has nothing to say: only wrong proxies need it.
QUIET_SECONDS = 0.4


class Bench:
    """A recording upstream behind a proxy, and what one case did to both."""

    def __init__(self) -> None:
        self.case = TABLE[0]
        self.seen: list[bytes] = []

    async def script(self, wire: Wire) -> None:
        """Record what comes, and answer each request as the case says."""
        while await self._read_request(wire):
            await wire.send(self.case.response)
            if self.case.resets:
                # Only once the client had its part, so that no proxy can answer 502 instead.
                await asyncio.sleep(0.05)
                wire.reset()
                return
            if self.case.closes:
                await wire.close()
                return

    async def _read_request(self, wire: Wire) -> bool:
        """Record until a request is whole by either framing, or nothing more comes; say whether anything came."""
        data = bytearray()
        try:
            async with asyncio.timeout(None) as quiet:
                while not _is_whole(bytes(data)):
                    piece = await wire.reader.read(65536)
                    if not piece:
                        break
                    data += piece
                    quiet.reschedule(asyncio.get_running_loop().time() + QUIET_SECONDS)
        except TimeoutError:
            # Half a request and no more of it: answered as it stands, as a server that reads less would.
            return True
        finally:
            self.seen.append(bytes(data))
        return bool(data)


def _is_whole(data: bytes) -> bool:
    head, end, body = data.partition(b"\r\n\r\n")
    lower = head.lower()
    if not end:
        return False
    if b"transfer-encoding: chunked" in lower:
        return body.endswith(b"0\r\n\r\n")
    if b"content-length: " in lower:
        return len(body) >= int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0])
    return True


async def _ask(port: int, case: Case) -> tuple[bytes, bool]:
    """Send the case and return what came back, and whether the connection was broken rather than closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = bytearray()
    was_broken = False
    try:
        writer.write(case.request)
        async with asyncio.timeout(QUIET_SECONDS * 4):
            while piece := await reader.read(65536):
                data += piece
                if _is_whole_answer(bytes(data), case):
                    break
    except TimeoutError:
        pass
    except ConnectionError:
        was_broken = True
    finally:
        writer.transport.abort()
    return bytes(data), was_broken


def _is_whole_answer(data: bytes, case: Case) -> bool:
    """Say whether one whole answer is there, so that a kept connection need not be waited out."""
    if case.most_requests > 1 or b"pipelined" in case.name.encode():
        return False
    head, end, body = data.partition(b"\r\n\r\n")
    if not end or head.startswith(b"HTTP/1.1 1"):
        return False
    lower = head.lower()
    if case.request.startswith(b"HEAD"):
        return True
    if b"content-length: " in lower and b" 304 " not in head:
        return len(body) >= int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0])
    return b"transfer-encoding: chunked" in lower and body.endswith(b"0\r\n\r\n")


def judge(case: Case, response: bytes, was_broken: bool, upstream: bytes) -> str | None:  # noqa: PLR0911, PLR0912 (one reason each)
    """Return what is wrong, or None."""
    status = _status(response)
    if case.refused:
        if upstream:
            return f"reached the upstream: {upstream[:80]!r}"
        return None if status in case.refused or status is None else f"status {status}"
    if case.failed:
        if status in case.failed:
            return None
        if status is None:
            return None if was_broken or not response else f"no answer: {response[:60]!r}"
        return "looks whole" if _looks_whole(response) and not was_broken else None
    for piece in case.upstream_sees:
        if piece.lower() not in upstream.lower():
            return f"upstream lacks {piece!r}"
    for piece in case.upstream_lacks:
        if piece.lower() in upstream.lower():
            return f"upstream sees {piece!r}"
    for piece in case.client_sees:
        if piece.lower() not in response.lower():
            return f"client lacks {piece!r} in {response[:120]!r}"
    for piece in case.client_lacks:
        if piece in response:
            return f"client sees {piece!r}"
    count = upstream.count(b" HTTP/1.1\r\nHost:") + upstream.count(b" HTTP/1.1\r\nhost:")
    smuggled = count - (upstream.count(b"/smuggled") if b"/smuggled" in case.request else 0)
    return f"{smuggled} requests" if smuggled > case.most_requests else None


def _status(response: bytes) -> int | None:
    words = response.split(b" ", 2)
    return int(words[1]) if len(words) > 2 and words[0].startswith(b"HTTP/") and words[1].isdigit() else None


def _looks_whole(response: bytes) -> bool:
    head, _, body = response.partition(b"\r\n\r\n")
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        return body.endswith(b"0\r\n\r\n")
    if b"content-length: " in lower:
        return len(body) >= int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0])
    return True


NGINX = """
daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log crit;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s; client_max_body_size 0;
  upstream up {{ server 127.0.0.1:{up}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Host $http_host;
      proxy_set_header Connection ""; proxy_set_header X-Forwarded-For $remote_addr;
      proxy_request_buffering off; proxy_buffering off;
    }}
  }}
}}
"""
HAPROXY = """
global
  log stderr local0 emerg
defaults
  mode http
  option forwardfor
  timeout connect 2s
  timeout client 5s
  timeout server 5s
frontend f
  bind 127.0.0.1:{port}
  http-request del-header x-forwarded-for
  default_backend b
backend b
  server s 127.0.0.1:{up}
"""


@contextlib.asynccontextmanager
async def run_peer(name: str, template: str, command: Callable[[str, str], list[str]], up: int) -> AsyncIterator[int]:
    """Run a peer proxy in front of port `up` and yield its own port."""
    program = require_tool(name)
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "conf"
        config.write_text(template.format(dir=directory, port=port, up=up))
        os.chmod(directory, 0o755)
        process = await asyncio.create_subprocess_exec(
            *command(program, str(config)), stderr=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
        )
        try:
            await _wait_port(port)
            yield port
        finally:
            process.terminate()
            await process.wait()


async def _wait_port(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return


@contextlib.asynccontextmanager
async def run_proxy(name: str, up: int) -> AsyncIterator[int]:
    """Run one of the three in front of port `up`."""
    match name:
        case "nginx":
            async with run_peer("nginx", NGINX, lambda program, conf: [program, "-c", conf], up) as port:
                yield port
        case "haproxy":
            async with run_peer("haproxy", HAPROXY, lambda program, conf: [program, "-db", "-f", conf], up) as port:
                yield port
        case _:
            quick = {"timeouts": {"response": "1s", "idle": "1s"}}
            async with run_gateway(forward_config(f"http://127.0.0.1:{up}", upstream_keys=quick)) as gateway:
                yield gateway.port


async def run_table(name: str) -> dict[str, str]:
    """Run every case against one proxy; return what each failing one did wrong."""
    bench = Bench()
    failures: dict[str, str] = {}
    async with RawUpstream(bench.script) as upstream, run_proxy(name, upstream.port) as port:
        for case in TABLE:
            bench.case, bench.seen = case, []
            response, was_broken = await _ask(port, case)
            wrong = judge(case, response, was_broken, b"".join(bench.seen))
            if wrong is not None:
                failures[case.name] = wrong
    return failures


@pytest.mark.usefixtures("every_lane")
async def test_gateway_passes_every_case() -> None:
    assert await run_table("gateway") == {}


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_table_is_honest_the_gateway_fails_fewer_than_nginx_and_haproxy() -> None:
    """And it is not made for us alone: either peer passes most of it."""
    failures = {name: await run_table(name) for name in ("gateway", "nginx", "haproxy")}
    for name in ("nginx", "haproxy"):
        print(f"{name}: {len(failures[name])} of {len(TABLE)} cases fail")
        for case, wrong in failures[name].items():
            print(f"   {case}: {wrong}")
        assert len(failures["gateway"]) < len(failures[name]) < len(TABLE) // 2, failures[name]


def test_names_are_unique() -> None:
    assert len({case.name for case in TABLE}) == len(TABLE)

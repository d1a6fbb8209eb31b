"""The table of wire cases, run against the gateway, nginx and HAProxy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.conftest import require_tool
from tests.peers import TIMEOUT_SECONDS, RawUpstream, Wire, forward_config, run_gateway
from tests.ports import free_port
from tests.wire.table import TABLE, Case

#: A peer that sends nothing for this long has ended its message. Only faulty proxies need this limit.
QUIET_SECONDS = 0.4


class RecordingUpstream:
    """A recording upstream after a proxy, and the bytes that it received in the current case."""

    def __init__(self) -> None:
        self.case = TABLE[0]
        self.seen: list[bytes] = []

    async def script(self, wire: Wire) -> None:
        """Record each request and send the response of the case."""
        while await self._read_request(wire):
            await wire.send(self.case.response)
            if self.case.resets:
                # Reset after the client received the first bytes, so that no proxy can respond with 502 instead.
                await asyncio.sleep(0.05)
                wire.reset()
                return
            if self.case.closes:
                await wire.close()
                return

    async def _read_request(self, wire: Wire) -> bool:
        """Record until a request is complete or the peer stops sending; return whether any byte was received."""
        data = bytearray()
        try:
            async with asyncio.timeout(None) as quiet:
                while not _is_complete(bytes(data)):
                    piece = await wire.reader.read(65536)
                    if not piece:
                        break
                    data += piece
                    quiet.reschedule(asyncio.get_running_loop().time() + QUIET_SECONDS)
        except TimeoutError:
            # The request is incomplete: respond anyway, as a server that does not read the body would.
            return True
        finally:
            self.seen.append(bytes(data))
        return bool(data)


def _is_complete(data: bytes) -> bool:
    head, end, body = data.partition(b"\r\n\r\n")
    lower = head.lower()
    if not end:
        return False
    if b"transfer-encoding: chunked" in lower:
        return body.endswith(b"0\r\n\r\n")
    if b"content-length: " in lower:
        return len(body) >= int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0])
    return True


async def _send(port: int, case: Case) -> tuple[bytes, bool]:
    """Send the request of the case; return the response, and whether the connection was reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = bytearray()
    was_reset = False
    try:
        writer.write(case.request)
        async with asyncio.timeout(QUIET_SECONDS * 4):
            while piece := await reader.read(65536):
                data += piece
                if _is_complete_response(bytes(data), case):
                    break
    except TimeoutError:
        pass
    except ConnectionError:
        was_reset = True
    finally:
        writer.transport.abort()
    return bytes(data), was_reset


def _is_complete_response(data: bytes, case: Case) -> bool:
    """Return whether one complete response was received. A kept connection then needs no timeout."""
    if case.max_requests > 1 or b"pipelined" in case.name.encode():
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


def failure_of(case: Case, response: bytes, was_reset: bool, upstream: bytes) -> str | None:  # noqa: PLR0911, PLR0912 (one return per reason)
    """Return why the case fails, or None."""
    status = _status(response)
    if case.refused:
        if upstream:
            return f"reached the upstream: {upstream[:80]!r}"
        return None if status in case.refused or status is None else f"status {status}"
    if case.failed:
        if status in case.failed:
            return None
        if status is None:
            return None if was_reset or not response else f"no response: {response[:60]!r}"
        return "looks complete" if _looks_complete(response) and not was_reset else None
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
    return f"{smuggled} requests" if smuggled > case.max_requests else None


def _status(response: bytes) -> int | None:
    words = response.split(b" ", 2)
    return int(words[1]) if len(words) > 2 and words[0].startswith(b"HTTP/") and words[1].isdigit() else None


def _looks_complete(response: bytes) -> bool:
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
    """Run a proxy whose upstream is port `up` and yield its port."""
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
    async with asyncio.timeout(TIMEOUT_SECONDS):
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
    """Run the gateway, nginx or HAProxy with port `up` as its upstream and yield its port."""
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
    """Run every case against one proxy; return the reason of each failed case."""
    recording = RecordingUpstream()
    failures: dict[str, str] = {}
    async with RawUpstream(recording.script) as upstream, run_proxy(name, upstream.port) as port:
        for case in TABLE:
            recording.case, recording.seen = case, []
            response, was_reset = await _send(port, case)
            reason = failure_of(case, response, was_reset, b"".join(recording.seen))
            if reason is not None:
                failures[case.name] = reason
    return failures


@pytest.mark.usefixtures("every_lane")
async def test_gateway_passes_every_case() -> None:
    assert await run_table("gateway") == {}


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_gateway_fails_fewer_cases_than_nginx_and_haproxy() -> None:
    """The table is not specific to the gateway: nginx and HAProxy pass most cases."""
    failures = {name: await run_table(name) for name in ("gateway", "nginx", "haproxy")}
    for name in ("nginx", "haproxy"):
        print(f"{name}: {len(failures[name])} of {len(TABLE)} cases fail")
        for case, reason in failures[name].items():
            print(f"   {case}: {reason}")
        assert len(failures["gateway"]) < len(failures[name]) < len(TABLE) // 2, failures[name]


def test_case_names_are_unique() -> None:
    assert len({case.name for case in TABLE}) == len(TABLE)

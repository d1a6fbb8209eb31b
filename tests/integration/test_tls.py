"""TLS with clients and upstreams: transfers use the copy lane and arrive identical."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import ssl
import threading
from pathlib import Path

import pytest
import requests

from gateway.observe.stats import Direction
from tests.certificates import Certificate
from tests.conftest import require_tool
from tests.integration.test_memory import gateway_process, length_of, read_head
from tests.peers import (
    OK,
    RawUpstream,
    Wire,
    chunked,
    forward_config,
    responding,
    run_gateway,
    split_response,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
BODY = os.urandom(5_000_001)


def echo(listener: ssl.SSLSocket) -> None:
    """Respond to every upload with its body."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(OSError):
            head, body = read_head(connection)
            while len(body) < length_of(head):
                body += connection.recv(2**20)
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def test_upload_and_download_over_tls_arrive_identical(
    tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.path))
    context = certificate.server_context()
    with socket.create_server(("127.0.0.1", 0)) as plain, context.wrap_socket(plain, server_side=True) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=echo, args=(listener,), daemon=True).start()
        async with gateway_process(forward_config(f"https://127.0.0.1:{port}"), tmp_path) as (_, gateway_port):
            url = f"http://127.0.0.1:{gateway_port}/"
            response = await asyncio.to_thread(requests.post, url, data=BODY, timeout=30)
            assert response.status_code == 200, response.text
            assert hashlib.sha256(response.content).digest() == hashlib.sha256(BODY).digest()


async def test_untrusted_certificate_of_an_upstream_is_502(tmp_path: Path, certificate: Certificate) -> None:
    context = certificate.server_context()
    with socket.create_server(("127.0.0.1", 0)) as plain, context.wrap_socket(plain, server_side=True) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=echo, args=(listener,), daemon=True).start()
        async with gateway_process(forward_config(f"https://127.0.0.1:{port}"), tmp_path) as (_, gateway_port):
            response = await asyncio.to_thread(requests.get, f"http://127.0.0.1:{gateway_port}/", timeout=30)
            assert (response.status_code, response.json()["code"]) == (502, "tls_error")


async def connect_tls(port: int) -> Wire:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, limit=2**20)
    return Wire(reader, writer)


async def test_curl_uploads_and_downloads_over_tls(tmp_path: Path, certificate: Certificate) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "body").write_bytes(BODY)
    config = {
        "tls": {"certificate": str(certificate.path), "key": str(certificate.key)},
        "routes": [
            {"name": "up", "match": {"prefix": "/up"}, "store": {"directory": str(tmp_path / "in")}},
            {"name": "down", "match": {"prefix": "/files/"}, "files": {"directory": str(tmp_path / "in")}},
        ],
    }
    async with gateway_process(config, tmp_path) as (_, port):
        base = f"https://127.0.0.1:{port}"
        curl = [require_tool("curl"), "-sSf", "--cacert", str(certificate.path)]
        for arguments in (
            ["-F", f"f=@{tmp_path / 'body'}", f"{base}/up"],
            ["-o", str(tmp_path / "got"), f"{base}/files/body"],
        ):
            process = await asyncio.create_subprocess_exec(*curl, *arguments, stdout=asyncio.subprocess.DEVNULL)
            assert await process.wait() == 0
        assert (tmp_path / "got").read_bytes() == BODY


async def test_forwarding_headers_name_https_for_a_client_over_tls(tmp_path: Path, certificate: Certificate) -> None:
    top = {"tls": {"certificate": str(certificate.path), "key": str(certificate.key)}}
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url, top=top)) as gateway:
        client = await connect_tls(gateway.port)
        await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
        assert split_response(await client.read_to_end())[2] == b"ok"
        assert b"X-Forwarded-Proto: https\r\n" in upstream.received
        assert b";proto=https" in upstream.received
        await client.close()


async def test_client_over_tls_that_disconnects_during_its_upload_cuts_the_upstream_request(
    tmp_path: Path, certificate: Certificate
) -> None:
    top = {"tls": {"certificate": str(certificate.path), "key": str(certificate.key)}}

    async def script(wire: Wire) -> None:
        await wire.read_head()
        await wire.read_to_end()

    async with RawUpstream(script) as upstream, run_gateway(forward_config(upstream.url, top=top)) as gateway:
        client = await connect_tls(gateway.port)
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await upstream.connected.wait()
        client.writer.transport.abort()
        await upstream.wait_finished()
        assert b"hello" in upstream.received
        assert not upstream.received.endswith(b"0\r\n\r\n")
        assert (await gateway.wait_log_line())["outcome"] == "client_left"


@pytest.mark.new_connection(reason="no connection may be opened")
async def test_request_without_tls_on_the_tls_port_gets_no_response(tmp_path: Path, certificate: Certificate) -> None:
    top = {"tls": {"certificate": str(certificate.path), "key": str(certificate.key)}}
    async with RawUpstream(responding(OK)) as upstream, run_gateway(forward_config(upstream.url, top=top)) as gateway:
        assert b"HTTP/1.1" not in await gateway.request(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n")
        assert not upstream.wires


@pytest.mark.parametrize("framing", ["close", "chunked"])
@pytest.mark.parametrize("end", ["close_notify", "FIN", "RST"])
@pytest.mark.parametrize("is_paused", [False, True])
async def test_response_over_tls_that_ends_without_close_notify_does_not_look_whole(
    framing: str, end: str, certificate: Certificate, *, is_paused: bool
) -> None:
    """A body that only the close ends was passed on as whole: anyone on the way can send a FIN."""
    body = b"x" * (3_000_000 if is_paused else 3000)
    is_chunked = framing == "chunked"
    head = b"Transfer-Encoding: chunked" if is_chunked else b"Connection: close"
    response = b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + (chunked(body) if is_chunked else body)

    async def respond(wire: Wire) -> None:
        await wire.writer.start_tls(certificate.server_context())
        await wire.read_head()
        await wire.send(response)
        if end == "close_notify":
            await wire.close()
        elif end == "FIN":
            wire.writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
            await wire.read_to_end()
        else:
            wire.reset()

    async with RawUpstream(respond, is_paused=True) as upstream:
        async with run_gateway(forward_config(f"https://localhost:{upstream.port}")) as gateway:
            client = await gateway.connect()
            if is_paused:
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a client that does not read
            await client.send(b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
            if is_paused:
                await wait_until(lambda: gateway.stats.routes["r"].transfers[Direction.DOWNLOAD].bytes_moved)
                client.writer.transport.resume_reading()  # type: ignore[attr-defined]  # see above
            received = await client.read_to_end()
            await client.close()
            is_whole = received.endswith(b"0\r\n\r\n")
            line = await gateway.wait_log_line()
            assert is_whole == (line["outcome"] == "complete")
            if end == "close_notify" or (is_chunked and end == "FIN"):
                assert is_whole
                assert received.count(b"x") == len(body)
            elif not is_chunked:
                assert not is_whole
                assert line["outcome"] == "upstream_failed"

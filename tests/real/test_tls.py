"""An upstream behind TLS: the lanes stay away, the bytes arrive all the same."""

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

from tests.actors import forward_config
from tests.conftest import require_tool
from tests.real.test_memory import gateway_process, length_of, read_head

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
BODY = os.urandom(5_000_001)


async def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Return certificate and key of 127.0.0.1, signed by itself."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    process = await asyncio.create_subprocess_exec(
        *(require_tool("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *(
            "-subj",
            "/CN=127.0.0.1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
        ),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    return certificate, key


def echo(listener: ssl.SSLSocket) -> None:
    """Answer every upload with itself."""
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


async def test_upload_and_download_over_tls_are_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = await make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as plain, context.wrap_socket(plain, server_side=True) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=echo, args=(listener,), daemon=True).start()
        async with gateway_process(forward_config(f"https://127.0.0.1:{port}"), tmp_path) as (_, gateway_port):
            url = f"http://127.0.0.1:{gateway_port}/"
            answer = await asyncio.to_thread(requests.post, url, data=BODY, timeout=30)
            assert answer.status_code == 200, answer.text
            assert hashlib.sha256(answer.content).digest() == hashlib.sha256(BODY).digest()


async def test_certificate_nobody_vouches_for_is_502(tmp_path: Path) -> None:
    certificate, key = await make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as plain, context.wrap_socket(plain, server_side=True) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=echo, args=(listener,), daemon=True).start()
        async with gateway_process(forward_config(f"https://127.0.0.1:{port}"), tmp_path) as (_, gateway_port):
            answer = await asyncio.to_thread(requests.get, f"http://127.0.0.1:{gateway_port}/", timeout=30)
            assert (answer.status_code, answer.json()["code"]) == (502, "tls_error")

"""Clients and upstreams of the benchmark; they cost less than the proxies between them.

Bodies are received with MSG_TRUNC, which drops bytes without copying them, and sent with one copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK_BYTES = 4 * 2**20
_BOUNDARY = b"------------------------d74496d66958873e"
FILE_NAME = "big.bin"
_HEAD = b"--" + _BOUNDARY + b'\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n' % FILE_NAME.encode()
FORM_HEAD = _HEAD + b"Content-Type: application/octet-stream\r\n\r\n"
FORM_TAIL = b"\r\n--" + _BOUNDARY + b"--\r\n"
FORM_TYPE = b"Content-Type: multipart/form-data; boundary=" + _BOUNDARY + b"\r\n"
_SCRATCH = threading.local()


_BLOCK = memoryview(os.urandom(2**20))


def send_body(sock: socket.socket, size: int, rate: float | None = None) -> None:
    """Send that many bytes, as clients do: from a buffer, one copy into the kernel; at most at a rate (bytes/s).

    sendfile would cost less, but hands the kernel single pages where a copy fills large ones, and so makes every
    proxy that receives it work on sixteen times as many pieces.
    """
    left, began = size, time.perf_counter()
    while left:
        step = min(left, len(_BLOCK))
        sock.sendall(_BLOCK[:step])
        left -= step
        if rate is not None:
            time.sleep(max(0.0, began + (size - left) / rate - time.perf_counter()))


def drop(sock: socket.socket, size: int) -> int:
    """Receive and forget up to that many bytes; return how many came before the end."""
    buffer = getattr(_SCRATCH, "buffer", None)
    if buffer is None:
        buffer = _SCRATCH.buffer = bytearray(BLOCK_BYTES)
    left = size
    flags = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_TRUNC
    while left:
        count = sock.recv_into(buffer, min(left, BLOCK_BYTES), flags)
        if not count:
            break
        left -= count
    return size - left


def read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """Return a head and what came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionError("closed before a head")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.lower(), rest


def length_of(head: bytes) -> int:
    """Return a head's Content-Length, 0 without one."""
    return int(head.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)


OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


def serve(sock: socket.socket) -> None:
    """Be the upstream on one connection: drop request bodies, send N bytes for /bytes/N and two bytes for the rest."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        head, rest = read_head(sock)
        if b"transfer-encoding: chunked" in head:
            _drop_chunked(sock, rest)
        else:
            drop(sock, length_of(head) - len(rest))
        if b"/bytes/" in head.split(b"\r\n", 1)[0]:
            size = int(head.partition(b"/bytes/")[2].split(b" ")[0])
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            send_body(sock, size)
        else:
            sock.sendall(OK)


def _drop_chunked(sock: socket.socket, rest: bytes) -> None:
    """Drop a chunked body: chunk by chunk, each without copying."""
    data = rest
    while True:
        while b"\r\n" not in data:
            data += sock.recv(65536)
        line, _, data = data.partition(b"\r\n")
        size = int(line.split(b";")[0], 16)
        take = min(size, len(data))
        data = data[take:]
        drop(sock, size - take)
        while len(data) < 2:
            data += sock.recv(2 - len(data))
        data = data[2:]
        if not size:
            return


@contextlib.contextmanager
def upstream(certificate: Path | None = None) -> Iterator[int]:
    """Run the upstream in threads, with TLS if given a certificate; yield its port."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        threading.Thread(target=_accept, args=(listener, context), daemon=True).start()
        yield listener.getsockname()[1]


def _accept(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(sock, context), daemon=True).start()


def _serve(sock: socket.socket, context: ssl.SSLContext | None) -> None:
    with contextlib.suppress(OSError, ValueError), sock if context is None else context.wrap_socket(sock, True) as end:
        serve(end)


def make_certificate(directory: Path) -> Path:
    """Return a PEM file with a key and a certificate of 127.0.0.1, signed by itself."""
    key, certificate, both = (directory / name for name in ("key.pem", "cert.pem", "both.pem"))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    both.write_text(certificate.read_text() + key.read_text())
    return both


def ask_form_over_tls(port: int, size: int) -> None:
    """POST one file as multipart, over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as sock:
        send_form(sock, size)


Ask = Callable[[int], None]


def ask_upload(port: int, size: int) -> None:
    """PUT a raw body with a Content-Length."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        send_upload(sock, size)


def send_upload(sock: socket.socket, size: int) -> None:
    """PUT a raw body with a Content-Length on a connection, as its last request."""
    sock.sendall(b"PUT /up HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
    send_body(sock, size)
    _check(sock)


def ask_form(port: int, size: int, target: bytes = b"/up", rate: float | None = None) -> None:
    """POST one file as multipart, with a Content-Length; at most at a rate (bytes/s)."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        send_form(sock, size, target, rate)


def ask_files(port: int, size: int, count: int = 8) -> None:
    """POST `count` files in one form, of `size` bytes together."""
    each = size // count
    length = count * (len(FORM_HEAD) + each + 2) + len(FORM_TAIL) - 2
    with socket.create_connection(("127.0.0.1", port)) as sock:
        head = b"POST /split HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n" + FORM_TYPE
        sock.sendall(head + b"Content-Length: %d\r\n\r\n" % length)
        for number in range(count):
            sock.sendall((b"\r\n" if number else b"") + FORM_HEAD)
            send_body(sock, each)
        sock.sendall(FORM_TAIL)
        _check(sock)


def hash_alone(_port: int, size: int) -> None:
    """Hash `size` bytes, as the digest filter does."""
    digest = hashlib.sha256()
    left = size
    while left:
        step = min(left, len(_BLOCK))
        digest.update(_BLOCK[:step])
        left -= step


def send_form(sock: socket.socket, size: int, target: bytes = b"/up", rate: float | None = None) -> None:
    """POST one file as multipart on a connection, as its last request; at most at a rate (bytes/s)."""
    length = len(FORM_HEAD) + size + len(FORM_TAIL)
    head = b"POST " + target + b" HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n" + FORM_TYPE
    sock.sendall(head + b"Content-Length: %d\r\n\r\n" % length + FORM_HEAD)
    send_body(sock, size, rate)
    sock.sendall(FORM_TAIL)
    _check(sock)


def ask_chunked_form(port: int, size: int) -> None:
    """POST one file as multipart, in chunks of 256 KiB."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        head = b"POST /up HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n" + FORM_TYPE
        sock.sendall(head + b"\r\n" + b"%x\r\n" % len(FORM_HEAD) + FORM_HEAD + b"\r\n")
        left = size
        while left:
            step = min(left, 2**18)
            sock.sendall(b"%x\r\n" % step)
            send_body(sock, step)
            sock.sendall(b"\r\n")
            left -= step
        sock.sendall(b"%x\r\n" % len(FORM_TAIL) + FORM_TAIL + b"\r\n0\r\n\r\n")
        _check(sock)


def ask_download(port: int, size: int, target: bytes | None = None) -> None:
    """GET a body and drop it."""
    target = target or b"/bytes/%d" % size
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        head, rest = read_head(sock)
        if b" 200 " not in head.split(b"\r\n")[0] + b" ":
            raise ConnectionError(head.decode("latin-1"))
        if len(rest) + drop(sock, length_of(head) - len(rest)) != size:
            raise ConnectionError("the download was cut")


def _check(sock: socket.socket) -> None:
    head, _ = read_head(sock)
    if b" 200 " not in head.split(b"\r\n")[0] + b" " and b" 201 " not in head:
        raise ConnectionError(head.decode("latin-1"))


def at_once(count: int, ask: Ask, port: int) -> None:
    """Let that many clients do the same work at once."""
    with ThreadPoolExecutor(count) as clients:
        for done in [clients.submit(ask, port) for _ in range(count)]:
            done.result()


def ask_small(port: int, request: bytes, count: int, clients: int) -> list[float]:
    """Send small requests on kept connections; return the seconds each took, sorted."""
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", port)
        socks = [stack.enter_context(socket.create_connection(address)) for _ in range(clients)]
        for sock in socks:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return ask_on(socks, request, count)


def ask_on(socks: Sequence[socket.socket], request: bytes, count: int) -> list[float]:
    """Send small requests on these connections; return the seconds each took, sorted."""

    def one(sock: socket.socket) -> list[float]:
        taken = []
        for _ in range(count // len(socks)):
            began = time.perf_counter()
            sock.sendall(request)
            head, rest = read_head(sock)
            missing = length_of(head) - len(rest)
            if b"transfer-encoding: chunked" in head:
                while not rest.endswith(b"0\r\n\r\n"):
                    rest += sock.recv(65536)
            elif missing > 0:
                drop(sock, missing)
            taken.append(time.perf_counter() - began)
        return taken

    with ThreadPoolExecutor(len(socks)) as pool:
        return sorted(seconds for taken in pool.map(one, socks) for seconds in taken)

"""Certificates for tests, and upstreams over TLS that a gateway in this process trusts."""

from __future__ import annotations

import functools
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import aiohttp.connector


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate of 127.0.0.1."""

    path: Path
    key: Path

    @functools.cache  # noqa: B019 (few are made)
    def server_context(self) -> ssl.SSLContext:
        """Return the context of a server that has it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path, self.key)
        return context

    @functools.cache  # noqa: B019 (see above)
    def client_context(self) -> ssl.SSLContext:
        """Return the context of a client that trusts it and nothing else."""
        return ssl.create_default_context(cafile=self.path)

    def trust(self) -> None:
        """Have gateways of this process trust it from now on: aiohttp has one context for all requests."""
        context = aiohttp.connector._SSL_CONTEXT_VERIFIED
        assert context is not None
        context.load_verify_locations(self.path)


def make_certificate(directory: Path) -> Certificate:
    """Make a certificate with openssl."""
    made = Certificate(directory / "cert.pem", directory / "key.pem")
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    files = ("-keyout", str(made.key), "-out", str(made.path))
    command = ("openssl", "req", "-x509", *key, *subject, *files)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return made

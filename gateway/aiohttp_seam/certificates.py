"""aiohttp without the certificates that it loads when it is imported. Verified against aiohttp 3.14.5.

aiohttp.connector makes the TLS context of its clients when it is imported, and reads the system's certificates into it:
35 ms and 2.7 MiB, which a gateway without `https` endpoints never uses. Here they are left out of it until
`load_certificates`; until then the context trusts no certificate. Delete when aiohttp makes its contexts at first use.

This module must be the first to import aiohttp; `gateway.run` and `gateway top` see to that. Where it is not, aiohttp
has loaded the certificates already.
"""

from __future__ import annotations

import functools
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _without_certificates() -> Iterator[None]:
    """Keep ssl.create_default_context from loading certificates. For imports, when no other thread runs yet."""
    load = ssl.SSLContext.load_default_certs

    def load_none(self: ssl.SSLContext, purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> None:
        pass

    ssl.SSLContext.load_default_certs = load_none  # type: ignore[method-assign]  # put back below
    try:
        yield
    finally:
        ssl.SSLContext.load_default_certs = load  # type: ignore[method-assign]  # as it was


if "aiohttp.connector" in sys.modules:
    from aiohttp import connector
else:
    with _without_certificates():
        from aiohttp import connector


@functools.cache
def load_certificates() -> None:
    """Load the certificates that TLS connections to upstreams are verified with, once. Blocks for 30 ms."""
    client_context().load_default_certs(ssl.Purpose.SERVER_AUTH)


def client_context() -> ssl.SSLContext:
    """Return the context of TLS connections to upstreams."""
    context: Any = connector._SSL_CONTEXT_VERIFIED
    if not isinstance(context, ssl.SSLContext) or context.verify_mode is not ssl.CERT_REQUIRED:
        raise TypeError("aiohttp.connector._SSL_CONTEXT_VERIFIED is not a context that verifies certificates")
    return context

"""What `fetch` may connect to: URLs on an allow-list, and public addresses, checked when the socket is made."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from gateway.errors import Fault, FaultKind

_PORTS = {"http": 80, "https": 443}


class AddressGuard:
    """aiohttp's socket factory: called with the address that is about to be connected to.

    So the check applies to the address in use, also of a name that resolves to a public address first and to a private
    one later (DNS rebinding).
    """

    def __init__(self, *, allows_private: bool) -> None:
        self._allows_private = allows_private

    def __call__(self, address: tuple[Any, ...]) -> socket.socket:
        """Return a socket for getaddrinfo's 5-tuple. Raises OSError EACCES; the next address is checked as well."""
        family, kind, protocol, _, sockaddr = address
        if not self._allows_private and not is_public(sockaddr[0]):
            raise OSError(errno.EACCES, "address is not public")
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        return sock


def is_public(address: str) -> bool:
    """Return whether an address is a public unicast address.

    Not private, loopback, link-local (where cloud metadata lives), shared, multicast or reserved, also not as IPv4
    within IPv6 (RFC 6890, RFC 4291, RFC 6052, RFC 3056).
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and (ip in _NAT64 or ip in _COMPATIBLE):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.teredo is not None or ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


class AllowList:
    """URL prefixes: scheme, host and port must be equal, the path must lie below by whole segments."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        self._allowed = [_key(prefix) for prefix in prefixes]

    def check(self, url: str) -> None:
        """Check a URL. Raises Fault URL_FORBIDDEN if it is malformed or not below a prefix."""
        try:
            scheme, host, port, path = _key(url)
        except ValueError:
            raise Fault(
                FaultKind.URL_FORBIDDEN,
                "What follows the route's prefix is not an http(s) URL: write https://host/path.",
            ) from None
        # A path with dot segments could leave the prefix once the origin resolves it.
        has_dots = any(segment in (".", "..") for segment in re.split(r"[/\\]", unquote(path)))
        for allowed in self._allowed:
            below = path == allowed[3] or path.startswith(allowed[3].rstrip("/") + "/")
            if (scheme, host, port) == allowed[:3] and below and not has_dots:
                return
        raise Fault(
            FaultKind.URL_FORBIDDEN, "This URL may not be fetched: the route's fetch.allow names the prefixes that may."
        )


def _key(url: str) -> tuple[str, str, int, str]:
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None or parts.password is not None:
        raise ValueError("not a URL")
    return parts.scheme, parts.hostname.lower().rstrip("."), parts.port or _PORTS[parts.scheme], parts.path or "/"

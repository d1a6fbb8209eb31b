"""A client as its requests are forwarded: its address, whether it is trusted, and the headers about it. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final, Protocol

from gateway.config.section import Network

_FORWARDING_LINES: Final = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\nForwarded: %b\r\n"


class Received(Protocol):
    """The headers of a request."""

    def all(self, key: bytes) -> Sequence[bytes]:
        """Return the values of all headers with that name (lower case), in order."""
        ...

    def first(self, key: bytes) -> bytes | None:
        """Return the first of them, or None."""
        ...


class Client:
    """The peer of a connection, the same for all of its requests. `trusted` are networks whose peers are trusted."""

    __slots__ = ("_authority", "_element", "_lines", "address", "is_trusted", "scheme", "trusted")

    def __init__(self, address: str, scheme: bytes, trusted: Sequence[Network]) -> None:
        self.address = address
        self.scheme = scheme
        self.trusted = trusted
        #: Whether its own forwarding and trace headers are kept.
        self.is_trusted = is_trusted(address, trusted)
        #: The host that was asked for last, and what was made for it.
        self._authority: bytes | None = None
        self._lines = b""
        self._element = b""

    def forwarding_lines(self, received: Received, authority: bytes) -> bytes:
        """Return X-Forwarded-* and Forwarded for a request to a host, in wire form.

        What a trusted client has sent is continued.
        """
        if authority != self._authority:
            self._prepare(authority)
        if not self.is_trusted:
            return self._lines
        return _FORWARDING_LINES % (
            b", ".join([*received.all(b"x-forwarded-for"), self.address.encode()]),
            received.first(b"x-forwarded-proto") or self.scheme,
            received.first(b"x-forwarded-host") or authority,
            b", ".join([*received.all(b"forwarded"), self._element]),
        )

    def _prepare(self, authority: bytes) -> None:
        # RFC 7239 section 6: an IPv6 address is in brackets and quotes; a host is in quotes because of its colon.
        address = self.address.encode()
        node = b'"[%b]"' % address if b":" in address else address
        host = authority.replace(b"\\", b"").replace(b'"', b"")
        self._authority = authority
        self._element = b'for=%b;host="%b";proto=%b' % (node, host, self.scheme)
        self._lines = _FORWARDING_LINES % (address, self.scheme, authority, self._element)


def peer_address(text: str) -> str:
    """Return the address of a peer as it is logged, compared and sent on: without zone, IPv4 as such.

    A socket that is bound to `[::]` sees IPv4 peers as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2).
    """
    if ":" not in text:
        return text
    address = ipaddress.IPv6Address(text.partition("%")[0])
    return str(address.ipv4_mapped or address)


def is_trusted(client: str, networks: Sequence[Network]) -> bool:
    """Return whether a peer's address is in one of the trusted networks."""
    if not networks or not client:
        return False
    address = ipaddress.ip_address(client)
    return any(address.version == network.version and address in network for network in networks)

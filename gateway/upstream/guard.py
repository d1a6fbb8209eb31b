"""What `fetch` may connect to: URLs on an allow-list, and public addresses, checked again when the socket is made."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.config.url import Url, parse_url
from gateway.errors import Fault, FaultKind
from gateway.http.paths import climbs, has_readings, is_below, readings
from gateway.transfer import open_socket
from gateway.upstream.addresses import is_public


class AddressForbiddenError(OSError):
    """An address that is not public. Shows as the reason why a connection could not be made."""

    def __init__(self) -> None:
        super().__init__("address is not public")


class AddressGuard:
    """Refuses addresses that are not public: in URLs, in answers of the DNS, and where a socket is made.

    The last is what counts: it sees the address that is connected to, also of a name that is public when it is looked
    at and private when it is used (DNS rebinding).
    """

    def __init__(self, *, allows_private: bool) -> None:
        self._allows_private = allows_private

    def make_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """Return a socket for getaddrinfo's 5-tuple: aiohttp's socket factory. Raises AddressForbiddenError."""
        self.check_address(address[4][0])
        return open_socket(address)

    def make_resolver(self, resolver: AbstractResolver) -> AbstractResolver:
        """Return a resolver that refuses a name with any address that may not be connected to."""
        return _GuardedResolver(self, resolver)

    def check_address(self, address: str) -> None:
        """Raise AddressForbiddenError for an address that may not be connected to."""
        if not self._allows_private and not is_public(address):
            raise AddressForbiddenError

    def check_url(self, url: Url) -> None:
        """Check a URL whose host is an address. Raises Fault ADDRESS_FORBIDDEN."""
        try:
            self.check_address(url.endpoint.host)
        except AddressForbiddenError as exc:
            raise address_forbidden() from exc
        except ValueError:
            # A name: its addresses are checked when it is resolved.
            return


class _GuardedResolver(AbstractResolver):
    def __init__(self, guard: AddressGuard, resolver: AbstractResolver) -> None:
        self._guard = guard
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Resolve a name. One private address among public ones is refused, too: only an attack mixes them."""
        results = await self._resolver.resolve(host, port, family)
        for result in results:
            self._guard.check_address(result["host"])
        return results

    async def close(self) -> None:
        """Close the resolver within."""
        await self._resolver.close()


class AllowList:
    """URL prefixes: scheme, host and port must be equal, the path must lie below by whole segments."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        self._allowed = [parse_url(prefix) for prefix in prefixes]

    def check(self, url: Url) -> None:
        """Check a URL. Raises Fault URL_FORBIDDEN if it is not below a prefix, however its path is read."""
        if any(_is_allowed(url, prefix) for prefix in self._allowed):
            return
        raise Fault(
            FaultKind.URL_FORBIDDEN, "This URL may not be fetched: the route's fetch.allow names the prefixes that may."
        )


def address_forbidden() -> Fault:
    """Return the fault of an address that is not public."""
    return Fault(
        FaultKind.ADDRESS_FORBIDDEN,
        "The URL's address, or one of its name's, is not public: set the route's fetch.private_networks to allow it.",
    )


def _is_allowed(url: Url, prefix: Url) -> bool:
    if url.endpoint != prefix.endpoint or not is_below(url.path, prefix.path):
        return False
    return not has_readings(url.path) or (
        not climbs(url.path) and all(is_below(reading, prefix.path) for reading in readings(url.path))
    )

"""aiohttp's connector, for opening connections to upstreams; `KeptConnections` keeps them. Verified against 3.14.5.

- `LiveConnector` measures the time of new connections. Delete when a trace costs nothing for those that are kept.
- `PoolRequest` is what it needs to know of an endpoint. Delete when `_create_connection` takes a ConnectionKey.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any, Final

import aiohttp
from aiohttp.client_reqrep import ClientRequest, ConnectionKey
from yarl import URL

from gateway.aiohttp_seam.client import ClientConnection, KeptConnections
from gateway.aiohttp_seam.feed import Turns

#: What aiohttp limits in parts; the whole of it is limited here.
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None)


class PoolRequest(ClientRequest):
    """The request that `LiveConnector` takes to open a connection, and the kept ones. Never sent; one per endpoint."""

    #: aiohttp makes the key anew for every request.
    connection_key: ConnectionKey = None  # type: ignore[assignment]  # set below; hides aiohttp's property

    def __init__(self, url: URL, *, kept_seconds: float) -> None:
        """`kept_seconds` is how long a connection is kept."""
        super().__init__("GET", url, loop=asyncio.get_running_loop())
        self.connection_key = super().connection_key
        self.kept = KeptConnections(kept_seconds)


class LiveConnector(aiohttp.TCPConnector):
    """Opens connections; any number at once."""

    def __init__(self, turns: Turns, on_connected: Callable[[float], None], **options: Any) -> None:
        """`on_connected` is called with the seconds that each new connection took: name lookup, TCP, TLS."""
        super().__init__(**options)
        self._on_connected = on_connected
        # aiohttp 3.14 has no public parameter for it.
        self._factory = functools.partial(ClientConnection, asyncio.get_running_loop(), turns)  # type: ignore[assignment]  # typed for its own class
        self._addresses: dict[PoolRequest, None] = {}

    async def take(
        self, address: PoolRequest, connect_seconds: float | None, *, must_be_new: bool = False
    ) -> ClientConnection:
        """Return a kept connection that is still open, or a new one. Raises TimeoutError, aiohttp.ClientError.

        With `must_be_new`, after a kept connection that failed: those kept with it are closed, as they may be as old.
        """
        if must_be_new:
            address.kept.drop_all()
        elif (kept := address.kept.take()) is not None:
            return kept
        started = time.monotonic()
        async with asyncio.timeout(connect_seconds):
            connection = await self._create_connection(address, [], _NO_TIMEOUT)
        if self.closed or not isinstance(connection, ClientConnection):
            connection.close()
            raise aiohttp.ClientConnectionError("the connector was closed")
        self._on_connected(time.monotonic() - started)
        self._addresses[address] = None
        # aiohttp closes the open ones together with the connector.
        acquired: set[Any] = self._acquired
        connection.join(address.kept, acquired)
        return connection

    async def close(self, *, abort_ssl: bool = False) -> None:
        """Close every connection."""
        for address in self._addresses:
            address.kept.forget_all()
        await super().close(abort_ssl=abort_ssl)

"""Opens connections to upstreams with aiohttp's connector, and keeps them. Verified against aiohttp 3.14.5.

- `KeptConnections` does not return one that the upstream has closed, and takes and keeps one without a coroutine and an
  object for each time. Delete when aiohttp's pool does both.
- `LiveConnector` measures the time of new connections. Delete when a trace costs nothing for those that are kept.
- `PoolRequest` is what aiohttp's connector reads of a request: the endpoint. Delete when `_create_connection` takes a
  ConnectionKey.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import aiohttp
from aiohttp.client_reqrep import ClientRequest, ConnectionKey
from yarl import URL

from gateway.aiohttp_seam.client import ClientConnection
from gateway.aiohttp_seam.feed import Turns

#: What aiohttp limits in parts; the whole of it is limited here.
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None)


class KeptConnections:
    """The connections to one endpoint that are open and have no request. The one kept longest is used first."""

    __slots__ = ("_connections", "_seconds", "_timer")

    def __init__(self, seconds: float) -> None:
        """`seconds` is how long one is kept."""
        self._seconds = seconds
        #: The one that is kept longest is the first.
        self._connections: deque[ClientConnection] = deque()
        #: Closes those that were kept so long. It runs on while there are any.
        self._timer: asyncio.TimerHandle | None = None

    def take(self) -> ClientConnection | None:
        """Return one that is still open, and untouched; None, without waiting, if there is none."""
        connections = self._connections
        if not connections:
            return None
        oldest = time.monotonic() - self._seconds
        while connections:
            connection = connections.popleft()
            if connection.kept_since >= oldest and connection.is_untouched():
                connection.is_kept = True
                return connection
            # Kept too long, or closed by the upstream, or it sent bytes without a request.
            connection.drop()
        return None

    def add(self, connection: ClientConnection) -> None:
        """Keep a connection: `ClientConnection.release` calls this."""
        connection.kept_since = time.monotonic()
        self._connections.append(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._drop_old)

    def drop_all(self) -> None:
        """Close all of them."""
        while self._connections:
            self._connections.popleft().drop()

    def forget_all(self) -> None:
        """Keep none of them any more: they are closed elsewhere."""
        self._connections.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop_old(self) -> None:
        self._timer = None
        now, connections = time.monotonic(), self._connections
        while connections and connections[0].kept_since <= now - self._seconds:
            connections.popleft().drop()
        if connections:
            seconds = connections[0].kept_since + self._seconds - now
            self._timer = asyncio.get_running_loop().call_later(seconds, self._drop_old)


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

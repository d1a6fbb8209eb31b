"""What `gateway top` reads from the API of the ops port, and the one thing it asks for: cancel."""

from __future__ import annotations

import json
import os
from typing import Any, Final, Self

import aiohttp
from yarl import URL

_TIMEOUT_SECONDS: Final = 5.0
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_ACCEPTED: Final = (200, 202)
#: Keys of a snapshot that the screen needs.
_KEYS: Final = ("transfers", "upstreams", "routes", "problems")

#: An object of the API: its keys are in /api/openapi.json.
Row = dict[str, Any]


class OpsError(Exception):
    """The ops port cannot be reached, or refuses; the text says how to mend it."""


class OpsClient:
    """A client of one ops port. Use it as an async context manager."""

    def __init__(self, url: str, token: str) -> None:
        """`url` is that of the ops port; `token` is "" where none is configured. Raises OpsError for no URL."""
        try:
            self._url = URL(url if "://" in url else f"http://{url}").origin()
        except ValueError as exc:
            raise OpsError(f"{url!r} is no URL: give the address of the key ops.listen") from exc
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def snapshot(self) -> Row:
        """Return what is under way now: the document of /api/snapshot. Raises OpsError."""
        status, body = await self._ask("GET", "/api/snapshot")
        try:
            found = json.loads(body) if status in _ACCEPTED else None
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(found.get(key), list) for key in _KEYS):
            raise OpsError(f"{self._url} is not the ops port of a gateway: see its key ops.listen")
        return found

    async def cancel(self, transfer_id: str) -> bool:
        """Cut an exchange. Return whether it was still under way. Raises OpsError."""
        status, _ = await self._ask("DELETE", f"/api/transfers/{transfer_id}")
        if status not in (*_ACCEPTED, _NOT_FOUND):
            raise OpsError(f"{self._url} answered {status}: nothing was cancelled")
        return status != _NOT_FOUND

    async def _ask(self, method: str, path: str) -> tuple[int, bytes]:
        try:
            async with self._session.request(method, self._url.with_path(path), allow_redirects=False) as response:
                status, body = response.status, await response.read()
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise OpsError(f"cannot reach the ops port at {self._url}: {_reason(exc)}") from exc
        if status in (_UNAUTHORIZED, _FORBIDDEN):
            hint = " (gateway top sends the environment variable OPS_TOKEN)" if status == _UNAUTHORIZED else ""
            raise OpsError(f"{self._url} refuses: {body.decode(errors='replace').strip()}{hint}")
        return status, body


def _reason(exc: Exception) -> str:
    if isinstance(exc, aiohttp.ClientConnectorError) and exc.os_error.errno:
        # aiohttp's own text repeats the address, and names TLS where there is none.
        return os.strerror(exc.os_error.errno).lower()
    # TimeoutError has no text.
    return str(exc) or f"no response within {_TIMEOUT_SECONDS:g} s"

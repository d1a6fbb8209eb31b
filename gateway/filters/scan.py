"""The filter `scan`: send every file to ClamAV's daemon (INSTREAM, clamd(8)), and cut infected files before their end.

clamd and the upstream receive the chunks at the same time; the file's last chunk is held until clamd has replied. An
upstream that processes an incomplete body is not protected: that would need the whole file to be held.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Final

from gateway.config.filters import ScanErrorPolicy
from gateway.config.values import parse_address
from gateway.errors import Fault, FaultKind
from gateway.filters.file import FileHead, FilterContext, Observer
from gateway.http.headers import Header
from gateway.threads import Threads
from gateway.transfer import exhaustion_fault

_UNIX: Final = "unix:"
_END: Final = b"\0\0\0\0"
_MAX_REPLY_BYTES: Final = 4096


class ScanFactory:
    """Creates the scan observers of a route."""

    first_bytes = 0

    def __init__(self, clamd: str, timeout_seconds: float, on_error: ScanErrorPolicy, context: FilterContext) -> None:
        self.clamd = clamd
        self.timeout_seconds = timeout_seconds
        self.on_error = on_error
        self.route = context.route
        #: For the lookup of clamd's name: one thread, since it is one name.
        self._lookups = Threads("name", 1)

    def __call__(self, file: FileHead) -> Observer:
        """Return the observer of a file."""
        return _Scan(self, file)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a new connection to clamd. Raises OSError, Fault OUT_OF_THREADS."""
        if self.clamd.startswith(_UNIX):
            return await asyncio.open_unix_connection(self.clamd.removeprefix(_UNIX))
        address = parse_address(self.clamd)
        # Not asyncio's lookup: it shares its few threads with everything else that blocks.
        look_up = partial(socket.getaddrinfo, address.host, address.port, type=socket.SOCK_STREAM)
        infos = await asyncio.wrap_future(self._lookups.submit(look_up))
        return await asyncio.open_connection(str(infos[0][4][0]), address.port)


class _Scan:
    def __init__(self, factory: ScanFactory, file: FileHead) -> None:
        self._factory = factory
        self._file = file
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reply = ""
        self._has_failed = False

    async def feed_data(self, chunk: bytes) -> None:
        """Send clamd a chunk. Waits while the connection's buffer is full. Raises Fault."""
        if not self._has_failed:
            await self._with_timeout(self._send(chunk))

    async def finish(self) -> None:
        """Wait for clamd's reply. Raises Fault, MALWARE_FOUND of an infected file."""
        if not self._has_failed:
            await self._with_timeout(self._read_reply())
        if self._reply.endswith(" FOUND"):
            name = self._reply.removeprefix("stream: ").removesuffix(" FOUND")
            raise Fault(FaultKind.MALWARE_FOUND, f"The scanner found {name!r} in {self._file}: send a clean file.")

    def close(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.transport.abort()

    def facts(self) -> Mapping[str, str | int]:
        """Return `scanned`: clean, or failed if clamd failed and `on_error` is pass."""
        return {"scanned": "failed" if self._has_failed else "clean"}

    def response_headers(self) -> Sequence[Header]:
        """Return no headers."""
        return ()

    async def _with_timeout(self, step: Awaitable[None]) -> None:
        """Await a step for at most `timeout`. If it fails, raise Fault, or record the failure."""
        try:
            async with asyncio.timeout(self._factory.timeout_seconds):
                await step
        except Fault:
            self._has_failed = True
            if self._factory.on_error == "refuse":
                raise
        except (OSError, TimeoutError, _UnexpectedReply) as exc:
            self._has_failed = True
            if self._factory.on_error == "refuse":
                exhaustion = exhaustion_fault(exc) if isinstance(exc, OSError) else None
                raise exhaustion or self._fault(exc) from exc

    def _fault(self, exc: Exception) -> Fault:
        return Fault(
            FaultKind.SCANNER_FAILED,
            f"The scanner failed for {self._file} ({type(exc).__name__}): try again, see clamd's log and its "
            f"StreamMaxLength, or set scan.on_error of route {self._factory.route!r} to pass.",
            retry_after_seconds=5,
        )

    async def _send(self, chunk: bytes) -> None:
        if self._writer is None:
            self._reader, self._writer = await self._factory.connect()
            self._writer.write(b"zINSTREAM\0")
        self._writer.write(len(chunk).to_bytes(4, "big"))
        self._writer.write(chunk)
        await self._writer.drain()

    async def _read_reply(self) -> None:
        if self._writer is None or self._reader is None:
            # The file is empty: there is nothing to scan.
            return
        self._writer.write(_END)
        await self._writer.drain()
        reply = await self._reader.read(_MAX_REPLY_BYTES)
        self._reply = reply.rstrip(b"\0\r\n").decode("utf-8", "replace")
        if not self._reply.endswith((" OK", " FOUND")):
            raise _UnexpectedReply(self._reply)


class _UnexpectedReply(Exception):
    """clamd replied neither OK nor FOUND."""

"""scan: shows every file to ClamAV's daemon as it passes (INSTREAM, clamd(8)); what it finds is cut before its end.

The daemon sees the bytes while the upstream does; the file's last chunk is held until its verdict. So an upstream that
acts on parts of a body is not protected by this, as by no scanner that does not hold the whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Final

from gateway.config.filters import ScanErrorPolicy
from gateway.config.values import parse_address
from gateway.errors import Fault, FaultKind
from gateway.filters.file import FileHead, FilterContext, Observer
from gateway.http.headers import Header

_UNIX: Final = "unix:"
_END: Final = b"\0\0\0\0"
_MAX_REPLY_BYTES: Final = 4096


class ScanFactory:
    """Asks one daemon."""

    first_bytes = 0

    def __init__(self, clamd: str, timeout_seconds: float, on_error: ScanErrorPolicy, context: FilterContext) -> None:
        self.clamd = clamd
        self.timeout_seconds = timeout_seconds
        self.on_error = on_error
        self.route = context.route

    def __call__(self, file: FileHead) -> Observer:
        """Return the observer of a file."""
        return _Scan(self, file)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection to the daemon. Raises OSError."""
        if self.clamd.startswith(_UNIX):
            return await asyncio.open_unix_connection(self.clamd.removeprefix(_UNIX))
        address = parse_address(self.clamd)
        return await asyncio.open_connection(address.host, address.port)


class _Scan:
    def __init__(self, kind: ScanFactory, file: FileHead) -> None:
        self._kind = kind
        self._file = file
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._verdict = ""
        self._has_failed = False

    async def feed_data(self, chunk: bytes) -> None:
        """Show the daemon a chunk; returns when it keeps up. Raises Fault SCANNER_FAILED."""
        if not self._has_failed:
            await self._within(self._send(chunk))

    async def finish(self) -> None:
        """Wait for the verdict. Raises Fault MALWARE_FOUND or SCANNER_FAILED."""
        if not self._has_failed:
            await self._within(self._ask())
        if self._verdict.endswith(" FOUND"):
            name = self._verdict.removeprefix("stream: ").removesuffix(" FOUND")
            raise Fault(FaultKind.MALWARE_FOUND, f"The scanner found {name!r} in {self._file}: it was not passed on.")

    def close(self) -> None:
        """Drop the connection."""
        if self._writer is not None:
            self._writer.transport.abort()

    def facts(self) -> Mapping[str, str | int]:
        """Return what the daemon said."""
        return {"scanned": "failed" if self._has_failed else "clean"}

    def response_headers(self) -> Sequence[Header]:
        """Nothing for the client."""
        return ()

    async def _within(self, step: Awaitable[None]) -> None:
        """Await a step within the time there is; a daemon that fails is a fault, or passed over."""
        try:
            async with asyncio.timeout(self._kind.timeout_seconds):
                await step
        except (OSError, TimeoutError, _Unfit) as exc:
            self._has_failed = True
            if self._kind.on_error == "refuse":
                raise Fault(
                    FaultKind.SCANNER_FAILED,
                    f"The scanner cannot be asked about {self._file} ({type(exc).__name__}): try again, see clamd's "
                    f"log and its StreamMaxLength, or set scan.on_error of route {self._kind.route!r} to pass.",
                    retry_after_seconds=5,
                ) from exc

    async def _send(self, chunk: bytes) -> None:
        if self._writer is None:
            self._reader, self._writer = await self._kind.connect()
            self._writer.write(b"zINSTREAM\0")
        self._writer.write(len(chunk).to_bytes(4, "big"))
        self._writer.write(chunk)
        await self._writer.drain()

    async def _ask(self) -> None:
        if self._writer is None or self._reader is None:
            # An empty file: nothing to be shown.
            return
        self._writer.write(_END)
        await self._writer.drain()
        reply = await self._reader.read(_MAX_REPLY_BYTES)
        self._verdict = reply.rstrip(b"\0\r\n").decode("utf-8", "replace")
        if not self._verdict.endswith((" OK", " FOUND")):
            raise _Unfit(self._verdict)


class _Unfit(Exception):
    """The daemon gave no verdict."""

"""What workers write to standard error: a pipe to the supervisor, which logs it and keeps the end of it.

Log lines do not come this way: workers write them to the gateway's standard output, see `observe.output`.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import Callable
from typing import Final

#: Kept of what a worker writes to standard error.
_TAIL_BYTES: Final = 16 * 1024
#: Output that comes within this time is one record.
_BURST_SECONDS: Final = 0.2
_log = logging.getLogger("gateway")


class Pipe(asyncio.Protocol):
    """The reading end of a pipe; `on_data` gets what arrives. Close it after use."""

    def __init__(self, on_data: Callable[[bytes], None]) -> None:
        self._on_data = on_data
        self._transport: asyncio.BaseTransport | None = None
        self.ended = asyncio.Event()

    @classmethod
    async def open(cls, file: io.FileIO, on_data: Callable[[bytes], None]) -> Pipe:
        """Take over the file of a reading end."""
        _, pipe = await asyncio.get_running_loop().connect_read_pipe(lambda: cls(on_data), file)
        return pipe

    async def close(self, seconds: float) -> None:
        """Wait for the end, no longer than this: a process that the worker has started may keep the pipe open."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), seconds)
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        self._on_data(data)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Record the end."""
        self._transport = None
        self.ended.set()


class LastWords:
    """Logs what a worker writes to standard error, and keeps the end of it."""

    def __init__(self, describe: Callable[[], str]) -> None:
        self._describe = describe
        self._tail = bytearray()
        #: Of the tail: what was not logged yet.
        self._new_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        #: Nothing is logged by itself any more: `text` goes into a record about the worker.
        self.is_held = False

    @property
    def text(self) -> str:
        """What was written last."""
        return self._tail.decode(errors="backslashreplace").strip()

    def feed(self, data: bytes) -> None:
        """Take in what was written."""
        self._tail += data
        del self._tail[:-_TAIL_BYTES]
        self._new_bytes = min(self._new_bytes + len(data), _TAIL_BYTES)
        if self._timer is None and not self.is_held:
            self._timer = asyncio.get_running_loop().call_later(_BURST_SECONDS, self._flush)

    def hold(self) -> None:
        """Log nothing by itself from now on."""
        self.is_held = True
        if self._timer is not None:
            self._timer.cancel()

    def _flush(self) -> None:
        self._timer = None
        text = self._tail[-self._new_bytes :].decode(errors="backslashreplace").strip()
        self._new_bytes = 0
        if text:
            _log.warning("%s wrote to standard error", self._describe(), extra={"keys": {"stderr": text}})

"""Observers beside a body that is carried byte for byte: what the inspector sees of its files is shown to them.

The inspector judges a chunk at once, without waiting; what it found in it is kept here until the transfer lets the
observers catch up, which is before the chunk goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway.filters.file import FileHead, ObserverFactory, Observers, head_of
from gateway.http.headers import Header
from gateway.multipart import Part

#: Told of each file that has ended well: its head, its size in bytes, what the observers found out.
OnFile = Callable[[FileHead, int, dict[str, str | int]], Any]


class FormObserver:
    """The files of one body. A filter of its transfer, and its awaited one."""

    def __init__(self, factories: Sequence[ObserverFactory], client: str, on_file: OnFile) -> None:
        self._factories = factories
        self._client = client
        self._on_file = on_file
        self._first_bytes = max((factory.first_bytes for factory in factories), default=0)
        self._events: list[FileHead | bytes | None] = []
        self._file: FileHead | None = None
        self._observers: Observers | None = None
        self._size = 0
        self._is_raw = False
        self._response_headers: list[Header] = []
        #: Whether enough of the first file was seen for an upstream to hear of the request.
        self.has_enough = not self._first_bytes

    def begin(self, part: Part) -> None:
        """Note the start of a file."""
        self._events.append(head_of(part, self._client))

    def data(self, chunk: bytes) -> None:
        """Note data of the file begun last."""
        self._events.append(chunk)

    def end(self) -> None:
        """Note the end of the file begun last."""
        self._events.append(None)

    def take_whole_body(self, file: FileHead) -> None:
        """Take the body itself for the file: it is no form."""
        self._is_raw = True
        self._events.append(file)

    def feed_data(self, chunk: bytes) -> None:
        """Note a chunk of a body that is no form."""
        if self._is_raw:
            self.data(chunk)

    def finish(self) -> None:
        """Note the end of a body that is no form."""
        if self._is_raw:
            self.end()

    def close(self) -> None:
        """Let go of the file under way."""
        if self._observers is not None:
            self._observers.close()
            self._observers = None

    async def flush(self) -> None:
        """Show the observers what was noted. Raises Fault."""
        events, self._events = self._events, []
        for event in events:
            if isinstance(event, FileHead):
                self._file, self._size = event, 0
                self._observers = Observers(self._factories, event)
            elif self._observers is not None and self._file is not None:
                if event is not None:
                    self._size += len(event)
                    await self._observers.feed_data(event)
                    self.has_enough = self.has_enough or self._size >= self._first_bytes
                else:
                    await self._end_file(self._file, self._observers)

    def response_headers(self) -> list[Header]:
        """Return what the observers of the files that have ended want the client to know."""
        return self._response_headers

    async def _end_file(self, file: FileHead, observers: Observers) -> None:
        await observers.finish()
        self.has_enough = True
        self._response_headers += observers.response_headers()
        self._on_file(file, self._size, observers.facts())
        self.close()

"""Run observers on the files of a body that is forwarded byte for byte.

`PartInspector` parses a chunk synchronously and calls `begin`, `data` and `end` for the files in it. These events are
held until the transfer calls `flush`, which passes them to the observers before the chunk is passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway.filters.file import FileHead, ObserverFactory, Observers, head_of
from gateway.http.headers import Header
from gateway.multipart import Part

#: Called for each complete file with its head, its size in bytes and the observers' facts.
OnFile = Callable[[FileHead, int, dict[str, str | int]], Any]


class FormObserver:
    """Observes the files of one body: the FileListener of its PartInspector, and a filter of its transfer.

    For a body that is not a form, call `take_whole_body` first; `feed_data` and `finish` then observe the body itself.
    """

    keeps_chunks = True

    def __init__(self, factories: Sequence[ObserverFactory], client: str, on_file: OnFile) -> None:
        self._factories = factories
        self._client = client
        self._on_file = on_file
        self._first_bytes = max((factory.first_bytes for factory in factories), default=0)
        self._events: list[FileHead | bytes | None] = []
        self._file: FileHead | None = None
        self._observers: Observers | None = None
        #: Bytes of the current file that were passed to the observers.
        self.size = 0
        self._is_raw = False
        self._response_headers: list[Header] = []
        #: Whether the observers checked enough of the first file to send a request upstream.
        self.has_enough = not self._first_bytes

    def begin(self, part: Part) -> None:
        """Record the start of a file."""
        self._events.append(head_of(part, self._client))

    def data(self, chunk: bytes) -> None:
        """Record data of the current file."""
        self._events.append(chunk)

    def end(self) -> None:
        """Record the end of the current file."""
        self._events.append(None)

    def take_whole_body(self, file: FileHead) -> None:
        """Observe the whole body as one file, because it is not a form."""
        self._is_raw = True
        self._events.append(file)

    def feed_data(self, chunk: bytes) -> None:
        """Record a chunk of a body that is not a form; does nothing for a form."""
        if self._is_raw:
            self.data(chunk)

    def finish(self) -> None:
        """Record the end of a body that is not a form; does nothing for a form."""
        if self._is_raw:
            self.end()

    def close(self) -> None:
        """Close the observers of the current file."""
        if self._observers is not None:
            self._observers.close()
            self._observers = None

    async def flush(self) -> None:
        """Pass the recorded events to the observers. Raises Fault."""
        events, self._events = self._events, []
        for event in events:
            if isinstance(event, FileHead):
                self._file, self.size = event, 0
                self._observers = Observers(self._factories, event)
            elif self._observers is not None and self._file is not None:
                if event is not None:
                    self.size += len(event)
                    await self._observers.feed_data(event)
                    self.has_enough = self.has_enough or self.size >= self._first_bytes
                else:
                    await self._end_file(self._file, self._observers)

    def response_headers(self) -> list[Header]:
        """Return the response headers of all complete files."""
        return self._response_headers

    async def _end_file(self, file: FileHead, observers: Observers) -> None:
        await observers.finish()
        self.has_enough = True
        self._response_headers += observers.response_headers()
        self._on_file(file, self.size, observers.facts())
        self.close()

"""Observers beside a body that is carried byte for byte: what the inspector sees of its files is shown to them.

The inspector judges a chunk at once, without waiting; what it found in it is kept here until the transfer lets the
observers catch up, which is before the chunk goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway.filters.file import FileHead, ObserverKind, Observers, head_of
from gateway.http.headers import Field
from gateway.multipart import Part

#: Told of each file that has ended well: its head, its size in bytes, what the observers found out.
OnFile = Callable[[FileHead, int, dict[str, str | int]], Any]


class FilesAlong:
    """The files of one body. A filter of its transfer, and its awaited one."""

    def __init__(self, kinds: Sequence[ObserverKind], client: str, on_file: OnFile) -> None:
        self._kinds = kinds
        self._client = client
        self._on_file = on_file
        self._first_bytes = max((kind.first_bytes for kind in kinds), default=0)
        self._events: list[FileHead | bytes | None] = []
        self._file: FileHead | None = None
        self._observers: Observers | None = None
        self._size = 0
        self._is_raw = False
        self._answer_fields: list[Field] = []
        #: Whether enough of the first file was seen for an upstream to hear of the request.
        self.has_verdict = not self._first_bytes

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

    def see(self, chunk: bytes) -> None:
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

    async def catch_up(self) -> None:
        """Show the observers what was noted. Raises Fault."""
        events, self._events = self._events, []
        for event in events:
            if isinstance(event, FileHead):
                self._file, self._size = event, 0
                self._observers = Observers(self._kinds, event)
            elif self._observers is not None and self._file is not None:
                if event is not None:
                    self._size += len(event)
                    await self._observers.see(event)
                    self.has_verdict = self.has_verdict or self._size >= self._first_bytes
                else:
                    await self._end_file(self._file, self._observers)

    def answer_fields(self) -> list[Field]:
        """Return what the observers of the files that have ended want the client to know."""
        return self._answer_fields

    async def _end_file(self, file: FileHead, observers: Observers) -> None:
        await observers.finish()
        self.has_verdict = True
        self._answer_fields += observers.answer_fields()
        self._on_file(file, self._size, observers.facts())
        self.close()

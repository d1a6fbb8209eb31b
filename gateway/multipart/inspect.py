"""The reader of parts run backwards: chunks are pushed past it, and it says nothing or raises.

`MultipartReader` pulls. A forwarded body is pulled by its far side already, so here the reader's coroutine is driven
by hand: it runs until it asks for more bytes, and goes on with the next chunk. No task, no queue, no second copy;
and a chunk is judged to its last byte before it is passed on. Rejected: a task with a queue of one chunk, which
costs two switches a chunk and lets a chunk out before its verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import coroutine
from typing import Protocol

from gateway.config import Limits
from gateway.errors import Fault, FaultKind
from gateway.multipart.content import FormContent
from gateway.multipart.reader import Part, PartKind, read_form


class FileListener(Protocol):
    """Told of the files of a form as they pass. Must not wait."""

    def begin(self, part: Part, /) -> None:
        """A file begins."""
        ...

    def data(self, chunk: bytes, /) -> None:
        """Some of it has come."""
        ...

    def end(self) -> None:
        """It was whole."""
        ...


class PartInspector:
    """Reads along a multipart body. Raises Fault from `see` before an offending chunk may be passed on."""

    def __init__(
        self,
        boundary: bytes,
        limits: Limits,
        route: str,
        on_part: Callable[[Part], None],
        listener: FileListener | None = None,
    ) -> None:
        self._chunk: bytes | None = None
        self._on_part = on_part
        self._listener = listener
        content = FormContent(boundary, limits, route, self._more)
        self._course = self._read(content, boundary, limits, route)
        self._is_ended = False
        self._is_done = False
        self._advance()

    def feed_data(self, chunk: bytes) -> None:
        """Judge one chunk. Raises Fault BAD_MULTIPART or a limit's."""
        self._chunk = chunk
        self._advance()

    def finish(self) -> None:
        """Judge the end of the body. Raises Fault if the form is not whole."""
        self._is_ended = True
        self._advance()
        if not self._is_done:
            raise Fault(FaultKind.BAD_MULTIPART, "The body ends without its closing boundary: it was cut short.")

    def close(self) -> None:
        """Let go of the reader in the middle of a body."""
        self._course.close()

    def _advance(self) -> None:
        try:
            self._course.send(None)
        except StopIteration:
            self._is_done = True

    async def _read(self, content: FormContent, boundary: bytes, limits: Limits, route: str) -> None:
        async for part in read_form(content, boundary, limits, route):
            listener = self._listener if part.kind is PartKind.FILE else None
            if listener is None:
                while await part.read():
                    pass
            else:
                listener.begin(part)
                while data := await part.read():
                    listener.data(data)
                listener.end()
            self._on_part(part)

    async def _more(self) -> bytes:
        while self._chunk is None:
            if self._is_ended:
                return b""
            await _pause()
        chunk, self._chunk = self._chunk, None
        return chunk


@coroutine
def _pause() -> Generator[None]:
    """Return control to `_advance`."""
    yield

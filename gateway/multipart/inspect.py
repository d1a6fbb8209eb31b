"""A parser of forms that chunks are pushed into: it checks each chunk before it is passed on, and raises on errors.

`MultipartReader` pulls bytes, but the chunks of a forwarded body are pulled by the sink of its transfer. So the
coroutine that reads the parts is resumed by hand, without an event loop: it runs until it needs more bytes, and
continues with the next chunk. This needs no task, no queue and no copy, and a chunk is checked to its last byte
before it is passed on. Rejected: a task with a queue of one chunk, which costs two task switches per chunk and
passes a chunk on before it is checked.

A form whose first chunk is all of it is read at a glance where it is plain (`quick`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, Protocol

from gateway.config import Limits
from gateway.errors import Fault, FaultKind
from gateway.multipart.content import FormContent
from gateway.multipart.quick import read_quickly
from gateway.multipart.reader import FormParts, Part, PartKind


class EndedPart(Protocol):
    """A part that was read to its end."""

    @property
    def number(self) -> int:
        """Its number, from 1."""
        ...

    @property
    def kind(self) -> PartKind:
        """Whether it is a file or a form field."""
        ...

    @property
    def size(self) -> int:
        """Bytes of its data."""
        ...


class FileListener(Protocol):
    """Receives the files of a form: for each file `begin`, then `data` any number of times, then `end`."""

    def begin(self, part: Part, /) -> None:
        """Receive the head of a file."""
        ...

    def data(self, chunk: bytes, /) -> None:
        """Receive data of the current file; never b""."""
        ...

    def end(self) -> None:
        """Receive the end of the current file; not called if the form is truncated or malformed."""
        ...


class PartInspector:
    """Parses a multipart body chunk by chunk.

    Order of calls: `feed_data` for every chunk, again with b"" while it returns True; then `finish` at the end of the
    body; `close` at any time. A Fault means that the chunk must not be passed on; after it only `close` may be called.
    `on_part` is called at the end of each part. `length` is that of the body in bytes, None if not known.
    """

    def __init__(
        self,
        boundary: bytes,
        limits: Limits,
        route: str,
        on_part: Callable[[EndedPart], None],
        listener: FileListener | None = None,
        *,
        length: int | None = None,
    ) -> None:
        self._boundary = boundary
        self._limits = limits
        self._route = route
        self._length = length
        self._chunk: bytes | None = None
        self._on_part = on_part
        self._listener = listener
        self.keeps_chunks = listener is not None
        self._has_more = False
        #: Reads the form; begun with the first chunk that is not read at a glance.
        self._coroutine: Coroutine[Any, Any, None] | None = None
        self._is_ended = False
        self._is_done = False

    def feed_data(self, chunk: bytes) -> bool:
        """Check one chunk, b"" for the rest of the one before. Return whether there is a rest.

        Raises Fault BAD_MULTIPART, or the fault of a limit.
        """
        if self._coroutine is None and (self._is_done or self._read_quickly(chunk)):
            return False
        if chunk:
            self._chunk = chunk
        self._has_more = False
        self._resume()
        return self._has_more

    def finish(self) -> None:
        """Check the end of the body. Raises Fault BAD_MULTIPART if the form is not complete."""
        self._is_ended = True
        while self.feed_data(b""):
            pass
        if not self._is_done:
            raise Fault(FaultKind.BAD_MULTIPART, "The body ends without its closing boundary: send the whole form.")

    def close(self) -> None:
        """Close the parsing coroutine; in the middle of a body the rest is not checked."""
        if self._coroutine is not None:
            self._coroutine.close()

    def _read_quickly(self, body: bytes) -> bool:
        """Read a whole form at a glance; return whether it was plain enough."""
        if len(body) != self._length or self._listener is not None:
            return False
        parts = read_quickly(body, self._boundary, self._limits)
        for part in parts or ():
            self._on_part(part)
        self._is_done = parts is not None
        return self._is_done

    def _resume(self) -> None:
        if self._coroutine is None:
            content = FormContent(self._boundary, self._limits, self._route, self)
            self._coroutine = self._read(content)
        try:
            self._coroutine.send(None)
        except StopIteration:
            self._is_done = True

    async def _read(self, content: FormContent) -> None:
        async for part in FormParts(content, self._boundary, self._limits, self._route):
            listener = self._listener if part.kind is PartKind.FILE else None
            if listener is None:
                await part.skip()
            else:
                listener.begin(part)
                while data := await part.read():
                    listener.data(data)
                listener.end()
            self._on_part(part)

    async def pull(self) -> bytes:
        """Wait for the next chunk: FormContent's source."""
        while self._chunk is None:
            if self._is_ended:
                return b""
            await _pause()
        chunk, self._chunk = self._chunk, None
        return chunk

    async def take_turn(self) -> None:
        """Have `feed_data` return in the middle of a chunk: FormContent's source."""
        self._has_more = True
        await _pause()


@coroutine
def _pause() -> Generator[None]:
    """Suspend the parsing coroutine, so that `_resume` returns."""
    yield

"""A parser of forms that chunks are pushed into: it checks each chunk before it is passed on, and raises on errors.

`MultipartReader` pulls bytes, but the chunks of a forwarded body are pulled by the sink of its transfer. So the
coroutine that reads the parts is resumed by hand, without an event loop: it runs until it needs more bytes, and
continues with the next chunk. This needs no task, no queue and no copy, and a chunk is checked to its last byte
before it is passed on. Rejected: a task with a queue of one chunk, which costs two task switches per chunk and
passes a chunk on before it is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import coroutine
from typing import Protocol

from gateway.config import Limits
from gateway.errors import Fault, FaultKind
from gateway.multipart.content import FormContent
from gateway.multipart.reader import FormParts, Part, PartKind


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
    `on_part` is called at the end of each part.
    """

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
        self._has_more = False
        content = FormContent(boundary, limits, route, self)
        self._coroutine = self._read(content, boundary, limits, route)
        self._is_ended = False
        self._is_done = False
        self._resume()

    def feed_data(self, chunk: bytes) -> bool:
        """Check one chunk, b"" for the rest of the one before. Return whether there is a rest.

        Raises Fault BAD_MULTIPART, or the fault of a limit.
        """
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
        self._coroutine.close()

    def _resume(self) -> None:
        try:
            self._coroutine.send(None)
        except StopIteration:
            self._is_done = True

    async def _read(self, content: FormContent, boundary: bytes, limits: Limits, route: str) -> None:
        async for part in FormParts(content, boundary, limits, route):
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

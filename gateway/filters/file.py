"""The interface of filters for files, for built-in filters and for plug-ins.

There are two kinds. An *observer* receives a file's head, each chunk and the end, and may raise; it cannot change the
bytes. A *transform* receives the chunks and yields others. With observers only, a form is forwarded byte for byte;
with a transform, forms are re-encoded.

Waiting in a filter is backpressure: nothing is read from the client meanwhile, and the time is charged to the leg
`filter`: all of an observer's, and a transform's except while it waits for the next chunk. Long computations belong in
`FilterContext.threads`. Chunks stay in order: a filter gets the next chunk after it returned. Rejected: a single kind
whose method returns the changed chunk, since decompressing a kilobyte to a megabyte would hold the megabyte in memory.

Calls of an observer, in this order:

    factory(file)                            may raise Fault to refuse the file by its head
    feed_data(chunk)                         any number of times, before the chunk is passed on
    finish()                                 at the file's end, before its last chunk is passed on
    facts(), response_headers()              only after finish() returned
    close()                                  once, always; feed_data or finish may have been cancelled
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from dataclasses import field as field_of
from typing import Any, Protocol, runtime_checkable

from gateway.http.headers import Header
from gateway.multipart import Part


@dataclass(frozen=True, slots=True)
class FileHead:
    """A file before its first byte: a file part of a form, or a raw body."""

    #: Number of the part in its form, from 1; 0 for a raw body.
    number: int
    #: Name of the form field; "" for a raw body.
    field: str
    #: The client's text, which is not a safe path.
    filename: str
    content_type: str | None
    #: In bytes; None if not known.
    size: int | None
    #: Headers of the part, or of the request for a raw body; names in lower case, values of one name joined by commas.
    headers: Mapping[str, str] = field_of(default_factory=dict)
    #: The client's address.
    client: str = ""

    def __str__(self) -> str:
        """Return the file's name for messages; it contains no text from the client."""
        return f"part {self.number}" if self.number else "the body"


def join_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers by name in lower case; values of one name are joined by commas (RFC 9110 section 5.2)."""
    joined: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        joined[key] = f"{joined[key]}, {value}" if key in joined else value
    return joined


def head_of(part: Part, client: str) -> FileHead:
    """Return the FileHead of a file part."""
    disposition = part.disposition
    headers = join_headers(part.reader.headers.items())
    return FileHead(
        part.number,
        disposition.name,
        disposition.filename or "",
        part.content_type,
        part.declared_bytes,
        headers,
        client,
    )


class Observer(Protocol):
    """Checks one file. The order of calls is in the module's docstring."""

    async def feed_data(self, chunk: bytes, /) -> None:
        """Check a chunk before it is passed on. A Fault drops the chunk and cuts the upstream request."""
        ...

    async def finish(self) -> None:
        """Check the whole file at its end. A Fault cuts the upstream request before the file's last chunk."""
        ...

    def close(self) -> None:
        """Release resources, whether the file is complete or not."""
        ...

    def facts(self) -> Mapping[str, str | int]:
        """Return results for the log and for the response documents of split and store."""
        ...

    def response_headers(self) -> Sequence[Header]:
        """Return headers to add to the response to the client."""
        ...


class ObserverFactory(Protocol):
    """Creates the observers of one route."""

    #: Bytes of a file that must be checked before a request is sent upstream; 0 for none.
    first_bytes: int

    def __call__(self, file: FileHead, /) -> Observer:
        """Return an observer for a file. Raises Fault to refuse the file by its head."""
        ...


@runtime_checkable
class TransformFactory(Protocol):
    """Changes the files of one route."""

    def transform(self, file: FileHead, chunks: AsyncIterator[bytes], /) -> AsyncIterator[bytes]:
        """Yield the chunks that replace the given ones; empty ones are dropped. Raises Fault to refuse the file."""
        ...


FilterFactory = ObserverFactory | TransformFactory


@dataclass(frozen=True, slots=True)
class FilterContext:
    """What the gateway provides to a filter."""

    route: str
    #: For computations of more than about a millisecond, which would block the event loop.
    threads: Executor


#: An entry point of the group `gateway.filters`; called with the options of the config, raises ValueError if invalid.
MakeFactory = Callable[[Mapping[str, Any], FilterContext], FilterFactory]


class Observers:
    """The observers of one file, in the order of the config."""

    def __init__(self, factories: Sequence[ObserverFactory], file: FileHead) -> None:
        self._observers: list[Observer] = []
        self._is_finished = False
        try:
            for factory in factories:
                self._observers.append(factory(file))
        except BaseException:
            # A plug-in may raise anything: the observers created before it must be closed.
            self.close()
            raise

    async def feed_data(self, chunk: bytes) -> None:
        """Pass a chunk to each observer. Raises Fault."""
        for each in self._observers:
            await each.feed_data(chunk)

    async def finish(self) -> None:
        """Pass the file's end to each observer. Raises Fault."""
        for each in self._observers:
            await each.finish()
        self._is_finished = True

    def close(self) -> None:
        """Close each observer once; further calls do nothing."""
        observers, self._observers = self._observers, []
        for each in observers:
            each.close()

    def facts(self) -> dict[str, str | int]:
        """Return the facts of all observers; empty before `finish` returned."""
        observers = self._observers if self._is_finished else ()
        return {name: value for each in observers for name, value in each.facts().items()}

    def response_headers(self) -> list[Header]:
        """Return the response headers of all observers; empty before `finish` returned."""
        observers = self._observers if self._is_finished else ()
        return [found for each in observers for found in each.response_headers()]


class Charge(Protocol):
    """Charges the time of filters: the meter of the transfer whose chunks they see."""

    def filtering(self) -> AbstractContextManager[None]:
        """Charge the block to filters, except for the reads of the transfer within it."""
        ...

    def resume_filtering(self) -> None:
        """Charge to filters again, after a read of the transfer within such a block."""
        ...


class FilteredFile:
    """A file that is pulled through its filters, in the order of the config.

    Order of calls: `read_first` once, `read` until b"", `close` always, then `facts` and `response_headers`.
    """

    def __init__(
        self,
        factories: Sequence[FilterFactory],
        file: FileHead,
        read: Callable[[], Awaitable[bytes]],
        charge: Charge,
    ) -> None:
        self._observers_of_file: list[Observers] = []
        self.first_bytes = max(
            (factory.first_bytes for factory in factories if not isinstance(factory, TransformFactory)), default=0
        )
        self._first_chunks: list[bytes] = []
        chunks = _iterate(read)
        try:
            for factory in factories:
                if isinstance(factory, TransformFactory):
                    chunks = _transform(factory, file, chunks, charge)
                else:
                    observers = Observers([factory], file)
                    self._observers_of_file.append(observers)
                    chunks = _observe(observers, chunks, charge)
        except BaseException:
            # A filter refused the file by its head: the ones created before it must be closed.
            for observers in self._observers_of_file:
                observers.close()
            raise
        self._chunks = chunks
        self._facts: dict[str, str | int] = {}
        self._response_headers: list[Header] = []

    async def read_first(self) -> None:
        """Read and hold the bytes that must be checked before a request is sent upstream. Raises Fault."""
        size = 0
        while size < self.first_bytes and (chunk := await anext(self._chunks, b"")):
            self._first_chunks.append(chunk)
            size += len(chunk)

    async def read(self) -> bytes:
        """Return the next chunk after all filters, b"" at the end. Raises Fault."""
        if self._first_chunks:
            return self._first_chunks.pop(0)
        return await anext(self._chunks, b"")

    async def close(self) -> None:
        """Close every filter; facts and response headers are kept."""
        await self._chunks.aclose()
        for observers in self._observers_of_file:
            self._facts |= observers.facts()
            self._response_headers += observers.response_headers()
            observers.close()
        self._observers_of_file = []

    def facts(self) -> dict[str, str | int]:
        """Return the facts of all filters; valid after `close`."""
        return self._facts

    def response_headers(self) -> list[Header]:
        """Return the response headers of all filters; valid after `close`."""
        return self._response_headers


async def _iterate(read: Callable[[], Awaitable[bytes]]) -> AsyncGenerator[bytes, None]:
    while chunk := await read():
        yield chunk


async def _transform(
    factory: TransformFactory, file: FileHead, chunks: AsyncGenerator[bytes, None], charge: Charge
) -> AsyncGenerator[bytes, None]:
    """Yield what a transform makes of the chunks. Its time is charged, but not that of what comes before it."""
    transformed = factory.transform(file, _charge_after_reads(chunks, charge))
    try:
        while True:
            with charge.filtering():
                chunk = await anext(transformed, None)
            if chunk is None:
                return
            # One that is empty would be taken for the end, and the file for whole.
            if chunk:
                yield chunk
    finally:
        # A plug-in may return another iterator than a generator.
        closing = getattr(transformed, "aclose", None)
        if closing is not None:
            await closing()


async def _charge_after_reads(chunks: AsyncGenerator[bytes, None], charge: Charge) -> AsyncIterator[bytes]:
    async with aclosing(chunks):
        async for chunk in chunks:
            charge.resume_filtering()
            yield chunk
        charge.resume_filtering()


async def _observe(
    observers: Observers, chunks: AsyncGenerator[bytes, None], charge: Charge
) -> AsyncGenerator[bytes, None]:
    """Yield each chunk after the observers checked it; the last one only after they checked the end."""
    held = b""
    async with aclosing(chunks):
        async for chunk in chunks:
            with charge.filtering():
                await observers.feed_data(chunk)
            if held:
                yield held
            held = chunk
    with charge.filtering():
        await observers.finish()
    if held:
        yield held

"""The interface of filters that look at files, in our code and others'.

Two kinds. An *observer* is told of a file's start, of each chunk and of its end; it passes or raises. A *transform*
gets the file's chunks and gives others. Observers work where a form is carried byte for byte as well; where a route
has a transform, its forms are made new.

Waiting in a filter is backpressure: nothing more is read from the client meanwhile, and the seconds are charged to
`filter`. Work that takes long goes to `FilterContext.threads`. Order is kept whatever a filter does: the next chunk
comes after it returned. Rejected: one kind that returns the bytes to go on, which cannot give out a megabyte for a
kilobyte without holding it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from dataclasses import field as field_of
from typing import Any, Protocol, runtime_checkable

from gateway.http.headers import Header
from gateway.multipart import Part


@dataclass(frozen=True, slots=True)
class FileHead:
    """What is known of a file before its first byte: a file part of a form, or a raw body."""

    #: Position among the parts of its form, from 1; 0 for a raw body.
    number: int
    #: Name of the form field; "" for a raw body.
    field: str
    #: As the client wrote it: text, not a path.
    filename: str
    content_type: str | None
    #: In bytes; None is not known.
    size: int | None
    #: Header fields of the part, or of the request for a raw body, names in lower case.
    headers: Mapping[str, str] = field_of(default_factory=dict)
    #: The client's address.
    client: str = ""

    def __str__(self) -> str:
        """Name it in a message to the client."""
        return f"part {self.number}" if self.number else "the body"


def head_of(part: Part, client: str) -> FileHead:
    """Return what is known of a file part."""
    said = part.disposition
    headers = {name.lower(): value for name, value in part.reader.headers.items()}
    return FileHead(
        part.number, said.name, said.filename or "", part.content_type, part.declared_bytes, headers, client
    )


class Observer(Protocol):
    """Looks at one file."""

    async def feed_data(self, chunk: bytes, /) -> None:
        """Look at a chunk before it goes on. Raises Fault: then it does not, and the upstream is cut."""
        ...

    async def finish(self) -> None:
        """Look at the end. Raises Fault: then the upstream is cut before the file's last chunk."""
        ...

    def close(self) -> None:
        """Let go, however the file ended. Called once; `see` or `finish` may have been cancelled."""
        ...

    def facts(self) -> Mapping[str, str | int]:
        """Return what the log and the gateway's documents tell of the file, once it has ended well."""
        ...

    def response_headers(self) -> Sequence[Header]:
        """Return fields for the answer to the client, once the file has ended well."""
        ...


class ObserverFactory(Protocol):
    """Makes the observers of one route."""

    #: Bytes of a file to be seen before an upstream hears of it; 0 for none.
    first_bytes: int

    def __call__(self, file: FileHead, /) -> Observer:
        """Return an observer for a file. Raises Fault to refuse it by its head."""
        ...


@runtime_checkable
class TransformFactory(Protocol):
    """Changes the files of one route."""

    def transform(self, file: FileHead, chunks: AsyncIterator[bytes], /) -> AsyncIterator[bytes]:
        """Yield what goes on instead of the chunks, none of them empty. Raises Fault."""
        ...


FilterFactory = ObserverFactory | TransformFactory


@dataclass(frozen=True, slots=True)
class FilterContext:
    """What a filter may use."""

    route: str
    #: For work that would hold up the loop: more than about a millisecond.
    threads: Executor


#: What an entry point of the group `gateway.filters` is: called with the options of the config. Raises ValueError.
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
            # Whatever a plug-in raises: those made before it must still let go.
            self.close()
            raise

    async def feed_data(self, chunk: bytes) -> None:
        """Show them a chunk. Raises Fault."""
        for each in self._observers:
            await each.feed_data(chunk)

    async def finish(self) -> None:
        """Tell them of the end. Raises Fault."""
        for each in self._observers:
            await each.finish()
        self._is_finished = True

    def close(self) -> None:
        """Let go of each, once."""
        observers, self._observers = self._observers, []
        for each in observers:
            each.close()

    def facts(self) -> dict[str, str | int]:
        """Return what they found out of a file that ended well; nothing before."""
        observers = self._observers if self._is_finished else ()
        return {name: value for each in observers for name, value in each.facts().items()}

    def response_headers(self) -> list[Header]:
        """Return what they want the client to know of a file that ended well; nothing before."""
        observers = self._observers if self._is_finished else ()
        return [found for each in observers for found in each.response_headers()]


class FilteredFile:
    """A file pulled through its filters, in their order. `close` it.

    `charged` is entered while an observer is waited for.
    """

    def __init__(
        self,
        factories: Sequence[FilterFactory],
        file: FileHead,
        read: Callable[[], Awaitable[bytes]],
        charged: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._watching: list[Observers] = []
        self.first_bytes = max(
            (factory.first_bytes for factory in factories if not isinstance(factory, TransformFactory)), default=0
        )
        self._first: list[bytes] = []
        chunks = _chunks_of(read)
        try:
            for factory in factories:
                if isinstance(factory, TransformFactory):
                    chunks = factory.transform(file, chunks)
                else:
                    observers = Observers([factory], file)
                    self._watching.append(observers)
                    chunks = _observed(observers, chunks, charged)
        except BaseException:
            # One refused the file by its head: those before it must still let go.
            for observers in self._watching:
                observers.close()
            raise
        self._chunks = chunks
        self._facts: dict[str, str | int] = {}
        self._response_headers: list[Header] = []

    async def read_first(self) -> None:
        """Read as much as must be seen before an upstream hears of the file. Raises Fault."""
        size = 0
        while size < self.first_bytes and (chunk := await anext(self._chunks, b"")):
            self._first.append(chunk)
            size += len(chunk)

    async def read(self) -> bytes:
        """Return the next bytes that go on, b"" at the end. Raises Fault."""
        if self._first:
            return self._first.pop(0)
        return await anext(self._chunks, b"")

    async def close(self) -> None:
        """Let go of every filter; what they found out stays."""
        closing = getattr(self._chunks, "aclose", None)
        if closing is not None:
            await closing()
        for observers in self._watching:
            self._facts |= observers.facts()
            self._response_headers += observers.response_headers()
            observers.close()
        self._watching = []

    def facts(self) -> dict[str, str | int]:
        """Return what the filters found out, once closed."""
        return self._facts

    def response_headers(self) -> list[Header]:
        """Return what the filters want the client to know, once closed."""
        return self._response_headers


async def _chunks_of(read: Callable[[], Awaitable[bytes]]) -> AsyncIterator[bytes]:
    while chunk := await read():
        yield chunk


async def _observed(
    observers: Observers, chunks: AsyncIterator[bytes], charged: Callable[[], AbstractContextManager[None]]
) -> AsyncIterator[bytes]:
    """Yield the chunks as they were seen; the last one only after the end was seen, too."""
    held = b""
    async with aclosing(chunks):  # type: ignore[type-var]  # generators all; the protocol asks for an iterator only
        async for chunk in chunks:
            with charged():
                await observers.feed_data(chunk)
            if held:
                yield held
            held = chunk
    with charged():
        await observers.finish()
    if held:
        yield held

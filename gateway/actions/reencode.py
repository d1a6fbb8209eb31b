"""Request bodies encoded anew: unwrapped, wrapped, their form fields edited, their files changed by filters.

Verbatim is the rule (invariant 2); this is for routes that ask for something else. The head of a reencoded body is
known only after the beginning of the client's body was read, so `prepare` comes before an endpoint is connected; then
`send_to` pulls piece by piece. What breaks is recorded on the transfer, as the body's own failure.

    call                    effect
    async with body         the client's body is read by this block; leaving it closes the filters of the file under way
    prepare                 reads the beginning; `shape` is known after it
    send_to(sink)           sends the body, once
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self

from gateway.actions.body_shape import BodyShape, HeldFields, file_pieces, passed_name, shape_file
from gateway.actions.upload import no_file_fault, raw_head, raw_name
from gateway.config import FileBody
from gateway.config.actions import Forward
from gateway.downstream import Exchange
from gateway.errors import Fault, FaultKind, Outcome
from gateway.filters import FileHead, FilteredFile, FilterFactory, TransformFactory, head_of
from gateway.http.headers import Header
from gateway.http.routing import RouteMatch
from gateway.multipart import FormContent, FormField, FormParts, FormWriter, Part, PartKind, check_strict
from gateway.transfer import BodyReader, Transfer
from gateway.upstream import UpstreamSink


class _Encoding(Protocol):
    """One way to encode a body."""

    @property
    def shape(self) -> BodyShape:
        """What is known of the body, once prepared."""
        ...

    async def prepare(self) -> None:
        """Read what must be known before the request is sent. Raises Fault."""
        ...

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes that go upstream. Raises Fault."""
        ...


class ReencodedBody:
    """One request body encoded anew."""

    def __init__(self, files: BodyFiles) -> None:
        self._files = files
        self._transfer = files.transfer
        self._stack = AsyncExitStack()
        self._encoding: _Encoding

    async def __aenter__(self) -> Self:
        """Start to read the client's body."""
        self._stack.enter_context(self._files.reader)
        self._stack.push_async_callback(self._files.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close filters and give the client's connection back to its transport."""
        await self._stack.aclose()

    async def prepare(self, boundary: bytes | None, *, needs_length: bool) -> None:
        """Read what must be known before the request is sent. Raises Fault.

        `boundary` is the form's, None for a body that is no form; with `needs_length` the upstream takes no chunks.
        """
        files = self._files
        if boundary is None:
            self._encoding = _WrappedOrFiltered(files)
        elif files.config.body == "raw":
            self._encoding = _UnwrappedFile(files, boundary, needs_length=needs_length)
        else:
            self._encoding = _EditedForm(files, boundary)
        with self._transfer.watched():
            await self._encoding.prepare()

    @property
    def shape(self) -> BodyShape:
        """What is known of the body, once prepared."""
        return self._encoding.shape

    async def send_to(self, sink: UpstreamSink) -> None:
        """Send the body. Raises Fault for the source, recorded on the transfer too; OSError for the sink."""
        with self._transfer.watched(sink.acknowledged):
            try:
                async with aclosing(self._encoding.pieces()) as pieces:
                    async for piece in pieces:
                        await sink.write(piece)
            except Fault as fault:
                self._transfer.fail(fault)
                raise

    def response_headers(self) -> Sequence[Header]:
        """Return the headers that filters add to the response."""
        return self._files.response_headers


class BodyFiles:
    """The client's body and its files, one after the other through the filters of the route."""

    def __init__(
        self,
        exchange: Exchange,
        matched: RouteMatch,
        config: Forward,
        factories: Sequence[FilterFactory],
        transfer: Transfer,
        *,
        reader: BodyReader,
    ) -> None:
        self.exchange = exchange
        self.matched = matched
        self.route = matched.route
        self.config = config
        self.factories = factories
        self.transfer = transfer
        self.reader = reader
        self.has_transform = any(isinstance(factory, TransformFactory) for factory in factories)
        self.response_headers: list[Header] = []
        self._filtered: FilteredFile | None = None
        self._file: tuple[FileHead, Part | None] | None = None

    def read_form(self, boundary: bytes) -> tuple[FormContent, AsyncIterator[Part]]:
        """Return the client's form."""
        limits, name = self.route.limits, self.route.name
        is_strict = self.config.multipart == "strict"
        content = FormContent(boundary, limits, name, self.reader, is_strict=is_strict)
        return content, FormParts(content, boundary, limits, name, check=check_strict if is_strict else None)

    async def open(self, file: FileHead, part: Part | None) -> FilteredFile:
        """Return a file through its filters, after they have seen the bytes they need first. Raises Fault."""
        await self.close()
        read = part.read if part is not None else self.reader.pull
        self._file = (file, part)
        self._filtered = FilteredFile(self.factories, file, read, self.transfer.meter)
        await self._filtered.read_first()
        return self._filtered

    async def finish(self) -> None:
        """Record the file that was sent whole."""
        filtered = self._filtered
        await self.close()
        if filtered is not None and self._file is not None:
            file, part = self._file
            size = part.size if part is not None else self.transfer.meter.moved_bytes
            self.exchange.record_part(file.number, PartKind.FILE, size, Outcome.COMPLETE, filtered.facts())
            self.response_headers += filtered.response_headers()

    async def close(self) -> None:
        """Close the filters of the file under way."""
        filtered, self._filtered = self._filtered, None
        if filtered is not None:
            await filtered.close()

    def record_field(self, part: Part) -> None:
        """Record a form field that has ended."""
        self.exchange.record_part(part.number, PartKind.FIELD, part.size, Outcome.COMPLETE)


class _WrappedOrFiltered:
    """A body that is no form: through its filters, and into a form where the route wraps it."""

    def __init__(self, files: BodyFiles) -> None:
        self._files = files

    async def prepare(self) -> None:
        files = self._files
        exchange, config = files.exchange, files.config
        file = replace(raw_head(exchange, raw_name(exchange, files.matched)), field=config.file_field)
        if files.has_transform:
            file = replace(file, size=None)
        body: FileBody = "multipart" if config.body == "multipart" else "raw"
        self.shape = shape_file(body, config.form_fields, config.filename_header, file, ())
        self._size = file.size
        self._filtered = await files.open(file, None)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        read, at_end = self._filtered.read, self._files.finish
        async for piece in file_pieces(self.shape, self._size, read, wrong_length=_wrong_length, at_end=at_end):
            yield piece


class _UnwrappedFile:
    """The one file of a form, sent without the form."""

    def __init__(self, files: BodyFiles, boundary: bytes, *, needs_length: bool) -> None:
        self._files = files
        self._boundary = boundary
        self._needs_length = needs_length

    async def prepare(self) -> None:
        files = self._files
        content, self._form = files.read_form(self._boundary)
        held = HeldFields(files.route)
        while (part := await anext(self._form, None)) is not None and part.kind is PartKind.FIELD:
            await held.read(part)
            files.record_field(part)
        if part is None:
            raise no_file_fault()
        file = head_of(part, files.exchange.client.address)
        if file.size is None and self._needs_length:
            file = replace(file, size=self._size_if_last(content))
        if files.has_transform:
            file = replace(file, size=None)
        self.shape = shape_file("raw", files.config.form_fields, files.config.filename_header, file, held.fields)
        self._size = file.size
        self._filtered = await files.open(file, part)

    def _size_if_last(self, content: FormContent) -> int | None:
        """Return the file's size if its form ends after it, as clients write forms; checked while it streams."""
        length = self._files.exchange.length
        if length is None:
            return None
        size = length - content.position - len(b"\r\n--" + self._boundary + b"--\r\n")
        return size if size >= 0 else None

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        read = self._filtered.read
        async for piece in file_pieces(self.shape, self._size, read, wrong_length=_wrong_length, at_end=self._end):
            yield piece

    async def _end(self) -> None:
        """Read what follows the file, before the upstream receives the last of it. Raises Fault."""
        files = self._files
        await files.finish()
        async for part in self._form:
            fields = files.config.form_fields
            is_sent = fields.send != "none" and passed_name(fields, part.disposition.name) is not None
            if part.kind is PartKind.FILE or is_sent:
                what = "A second file" if part.kind is PartKind.FILE else f"Form field {part.disposition.name!r}"
                raise Fault(
                    FaultKind.UNEXPECTED_PART,
                    f"{what} follows the file that this route sends without its form: send the fields first, then one "
                    "file.",
                )
            await part.skip()
            files.record_field(part)


class _EditedForm:
    """A form with a fresh boundary: its fields edited, its files through their filters."""

    def __init__(self, files: BodyFiles, boundary: bytes) -> None:
        self._files = files
        self._boundary = boundary
        self._writer = FormWriter()
        self.shape = BodyShape(((b"Content-Type", self._writer.content_type),), "", b"", b"", None)
        self._needs_first = any(
            not isinstance(factory, TransformFactory) and factory.first_bytes for factory in files.factories
        )
        self._first = bytearray()
        self._pieces = self._make_pieces()

    async def prepare(self) -> None:
        held = HeldFields(self._files.route)
        while self._needs_first and (piece := await anext(self._pieces, None)) is not None:
            self._first += piece
            if self._needs_first:
                held.count(len(piece))

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        first, self._first = bytes(self._first), bytearray()
        if first:
            yield first
        async for piece in self._pieces:
            yield piece

    async def _make_pieces(self) -> AsyncGenerator[bytes, None]:
        files, writer = self._files, self._writer
        choice = files.config.form_fields
        for name, value in choice.add.items():
            yield writer.field(FormField(name, value.encode()))
        _, form = files.read_form(self._boundary)
        async for part in form:
            if part.kind is PartKind.FILE:
                filtered = await files.open(head_of(part, files.exchange.client.address), part)
                self._needs_first = False
                name, filename = part.disposition.name, part.disposition.filename or ""
                yield writer.file_head(name, filename, part.content_type)
                while data := await filtered.read():
                    yield data
                await files.finish()
                continue
            passed = passed_name(choice, part.disposition.name)
            if passed is not None:
                yield writer.field(FormField(passed, b"", part.content_type))
            while data := await part.read():
                if passed is not None:
                    yield data
            files.record_field(part)
        yield writer.end()


def _wrong_length() -> Fault:
    return Fault(
        FaultKind.LENGTH_REQUIRED,
        "The upstream needs the length before the file, and the form does not end after its file: send the "
        "fields first, then one file.",
    )

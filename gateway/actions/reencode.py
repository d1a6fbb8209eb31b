"""Bodies made anew on their way upstream: unwrapped, wrapped, their fields edited, their files changed by filters.

Verbatim is the rule (law 2); this is for routes that ask for something else. A remade body knows its head only after
the beginning of the client's was read, so `prepare` comes before the endpoint is connected; then its pieces are pulled
by whoever sends them. What breaks is noted on the transfer, as its own failure.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from types import TracebackType
from typing import Final, Literal, Protocol, Self

from gateway.actions.body_shape import BodyShape, HeldFields, file_pieces, passed_name, shape_file
from gateway.actions.upload import raw_head, raw_name
from gateway.config import Route
from gateway.config.model import Forward
from gateway.downstream import Exchange
from gateway.errors import Fault, FaultKind, Outcome
from gateway.filters import FileHead, FilteredFile, FilterFactory, TransformFactory, head_of
from gateway.http.headers import Header
from gateway.http.routing import RouteMatch
from gateway.multipart import FormContent, FormField, FormWriter, Part, PartKind, check_strict, read_form
from gateway.transfer import BodyReader, Transfer
from gateway.upstream import UpstreamSink

_NO_FILE: Final = "The form has no file: send one with a name (curl -F file=@NAME)."


class _Pieces(Protocol):
    """What a remade body is made of."""

    @property
    def shape(self) -> BodyShape:
        """Its head, once prepared."""
        ...

    async def prepare(self) -> None:
        """Read what must be known before an upstream hears of the request. Raises Fault."""
        ...

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes that go upstream. Raises Fault."""
        ...


class ReencodedBody:
    """One body made anew. An async context manager, which lets go of every filter."""

    def __init__(
        self,
        exchange: Exchange,
        matched: RouteMatch,
        config: Forward,
        factories: Sequence[FilterFactory],
        transfer: Transfer,
        *,
        body: BodyReader,
    ) -> None:
        self._transfer = transfer
        self._work = _Work(exchange, matched, config, factories, transfer, body=body)
        self._body = body
        self._stack = AsyncExitStack()
        self._made: _Pieces

    async def __aenter__(self) -> Self:
        """Begin to take the client's body."""
        self._stack.enter_context(self._body)
        self._stack.push_async_callback(self._work.close_file)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of every filter, and of the client's body."""
        await self._stack.aclose()

    def choose(self, boundary: bytes | None, *, needs_length: bool) -> None:
        """Decide what becomes of a body with this boundary, None without one."""
        config = self._work.config
        if boundary is None:
            self._made = _FromRaw(self._work)
        elif config.body == "raw":
            self._made = _FileOfForm(self._work, boundary, needs_length=needs_length)
        else:
            self._made = _FormOfForm(self._work, boundary)

    @property
    def shape(self) -> BodyShape:
        """Its head, once prepared."""
        return self._made.shape

    async def prepare(self) -> None:
        """Read what must be known before an upstream hears of the request. Raises Fault."""
        with self._transfer.watched():
            await self._made.prepare()

    async def carry(self, sink: UpstreamSink) -> None:
        """Send it. Raises Fault, noted on the transfer too."""
        with self._transfer.watched(sink.pending):
            try:
                async with aclosing(self._made.pieces()) as pieces:
                    async for piece in pieces:
                        await sink.write(piece)
            except Fault as fault:
                self._transfer.fail(fault)
                raise

    def response_headers(self) -> list[Header]:
        """Return what filters want the client to know."""
        return self._work.response_headers


class _Work:
    """What every way of remaking needs."""

    def __init__(
        self,
        exchange: Exchange,
        matched: RouteMatch,
        config: Forward,
        factories: Sequence[FilterFactory],
        transfer: Transfer,
        *,
        body: BodyReader,
    ) -> None:
        self._body = body
        self.exchange = exchange
        self.matched = matched
        self.config = config
        self.factories = factories
        self.transfer = transfer
        self.has_transform = any(isinstance(factory, TransformFactory) for factory in factories)
        self.response_headers: list[Header] = []
        self._filtered: FilteredFile | None = None
        self._file: tuple[FileHead, Part | None] | None = None

    @property
    def route(self) -> Route:
        """The route."""
        return self.matched.route

    def read_form(self, boundary: bytes) -> tuple[FormContent, AsyncIterator[Part]]:
        """Return the client's form."""
        limits, name = self.route.limits, self.route.name
        is_strict = self.config.multipart == "strict"
        content = FormContent(boundary, limits, name, self._body.pull, is_strict=is_strict)
        form = read_form(content, boundary, limits, name)
        return content, _strictly(form) if is_strict else form

    async def open_file(self, file: FileHead, part: Part | None) -> FilteredFile:
        """Return a file through the route's filters, as much of it read as they must see first. Raises Fault."""
        await self.close_file()
        read = part.read if part is not None else self._body.pull
        self._file = (file, part)
        self._filtered = FilteredFile(self.factories, file, read, self.transfer.meter.filtering)
        await self._filtered.read_first()
        return self._filtered

    async def end_file(self) -> None:
        """Note a file that went whole."""
        filtered = self._filtered
        await self.close_file()
        if filtered is not None and self._file is not None:
            file, part = self._file
            size = part.size if part is not None else self.transfer.meter.moved_bytes
            self.exchange.record_part(file.number, PartKind.FILE, size, Outcome.COMPLETE, filtered.facts())
            self.response_headers += filtered.response_headers()

    async def close_file(self) -> None:
        """Let go of the filters of the file under way."""
        filtered, self._filtered = self._filtered, None
        if filtered is not None:
            await filtered.close()

    def note_field(self, part: Part) -> None:
        """Note a form field that has ended."""
        self.exchange.record_part(part.number, PartKind.FIELD, part.size, Outcome.COMPLETE)


class _FromRaw:
    """A body that is no form, as it is but for its filters, or wrapped into a form."""

    def __init__(self, work: _Work) -> None:
        self._work = work

    async def prepare(self) -> None:
        work = self._work
        exchange, config = work.exchange, work.config
        file = replace(raw_head(exchange, raw_name(exchange, work.matched)), field=config.file_field)
        if work.has_transform:
            file = replace(file, size=None)
        body: Literal["multipart", "raw"] = "multipart" if config.body == "multipart" else "raw"
        self.shape = shape_file(body, config.form_fields, config.filename_header, file, ())
        self._size = file.size
        self._filtered = await work.open_file(file, None)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        read, at_end = self._filtered.read, self._work.end_file
        async for piece in file_pieces(self.shape, self._size, read, wrong_length=_wrong_length, at_end=at_end):
            yield piece


class _FileOfForm:
    """The one file of a form, by itself."""

    def __init__(self, work: _Work, boundary: bytes, *, needs_length: bool) -> None:
        self._work = work
        self._boundary = boundary
        self._needs_length = needs_length

    async def prepare(self) -> None:
        work = self._work
        content, self._form = work.read_form(self._boundary)
        held = HeldFields(work.route)
        while (part := await anext(self._form, None)) is not None and part.kind is PartKind.FIELD:
            await held.read(part)
            work.note_field(part)
        if part is None:
            raise Fault(FaultKind.BAD_MULTIPART, _NO_FILE)
        file = head_of(part, work.exchange.client)
        if file.size is None and self._needs_length:
            file = replace(file, size=self._size_if_last(content))
        if work.has_transform:
            file = replace(file, size=None)
        self.shape = shape_file("raw", work.config.form_fields, work.config.filename_header, file, held.fields)
        self._size = file.size
        self._filtered = await work.open_file(file, part)

    def _size_if_last(self, content: FormContent) -> int | None:
        """Return the file's size if its form ends behind it, as clients write forms; held to while it streams."""
        length = self._work.exchange.length
        if length is None:
            return None
        size = length - content.position - len(b"\r\n--" + self._boundary + b"--\r\n")
        return size if size >= 0 else None

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        read = self._filtered.read
        async for piece in file_pieces(self.shape, self._size, read, wrong_length=_wrong_length, at_end=self._end):
            yield piece

    async def _end(self) -> None:
        """Read what stands behind the file, before the upstream has the last of it. Raises Fault."""
        work = self._work
        await work.end_file()
        async for part in self._form:
            fields = work.config.form_fields
            is_sent = fields.send != "none" and passed_name(fields, part.disposition.name) is not None
            if part.kind is PartKind.FILE or is_sent:
                what = "A second file" if part.kind is PartKind.FILE else f"Form field {part.disposition.name!r}"
                raise Fault(
                    FaultKind.UNEXPECTED_PART,
                    f"{what} stands behind the file that this route sends on by itself: send the fields first, then "
                    "one file.",
                )
            while await part.read():
                pass
            work.note_field(part)


class _FormOfForm:
    """A form made anew: its fields chosen, its files through their filters."""

    def __init__(self, work: _Work, boundary: bytes) -> None:
        self._work = work
        self._boundary = boundary
        self._writer = FormWriter()
        self.shape = BodyShape(((b"Content-Type", self._writer.content_type),), "", b"", b"", None)
        self._needs_first = any(
            not isinstance(factory, TransformFactory) and factory.first_bytes for factory in work.factories
        )
        self._first: list[bytes] = []
        self._made = self._make()

    async def prepare(self) -> None:
        held = HeldFields(self._work.route)
        while self._needs_first and (piece := await anext(self._made, None)) is not None:
            self._first.append(piece)
            if self._needs_first:
                held.count(len(piece))

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        for piece in self._first:
            yield piece
        async for piece in self._made:
            yield piece

    async def _make(self) -> AsyncGenerator[bytes, None]:
        work, writer = self._work, self._writer
        choice = work.config.form_fields
        for name, value in choice.add.items():
            yield writer.field(FormField(name, value.encode()))
        _, form = work.read_form(self._boundary)
        async for part in form:
            if part.kind is PartKind.FILE:
                filtered = await work.open_file(head_of(part, work.exchange.client), part)
                self._needs_first = False
                name, filename = part.disposition.name, part.disposition.filename or ""
                yield writer.file_head(name, filename, part.content_type)
                while data := await filtered.read():
                    yield data
                await work.end_file()
                continue
            passed = passed_name(choice, part.disposition.name)
            if passed is not None:
                yield writer.field(FormField(passed, b"", part.content_type))
            while data := await part.read():
                if passed is not None:
                    yield data
            work.note_field(part)
        yield writer.end()


async def _strictly(form: AsyncIterator[Part]) -> AsyncIterator[Part]:
    async for part in form:
        check_strict(part)
        yield part


def _wrong_length() -> Fault:
    return Fault(
        FaultKind.LENGTH_REQUIRED,
        "The upstream wants to know the length before the file, and the form does not end behind its file: send the "
        "fields first, then one file.",
    )

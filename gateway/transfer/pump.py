"""The choice of a lane, and the way of the bytes on each."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Final, Literal, Protocol, Self

from gateway.errors import Fault
from gateway.transfer.raw_body import RawBody, SizedRawBody
from gateway.transfer.raw_socket import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, RawSocket
from gateway.transfer.splice import Pipe, can_splice, open_pipe
from gateway.transfer.transfer import Transfer

Lanes = Literal["auto", "copy"]
#: Below this the descriptors and the pipe cost more than they save.
MIN_RAW_BYTES: Final = 2**18
#: What the chunks of all transfers on the direct copy lane may hold together, but for the least each.
ALL_CHUNKS_BYTES: Final = 8 * 2**20
#: A chunk that filters (a rate, say) held back for longer than this was too large, down to so many bytes.
_HELD_SECONDS: Final = 0.25
_MIN_HELD_BYTES: Final = 8 * 1024


class Lane(enum.StrEnum):
    """How the bytes of a transfer were moved."""

    COPY = "copy"
    SPLICE = "splice"


class Source(Protocol):
    """Where chunks come from, and how to take the rest of them below the transport."""

    async def read(self) -> bytes:
        """Return the next chunk, b"" at the end. Raises Fault."""
        ...

    def pause(self) -> bool:
        """Let nothing more come in through the transport; say whether that can be done."""
        ...

    @property
    def has_buffered(self) -> bool:
        """Whether a read would return at once what came in before the pause."""
        ...

    def detach(self, left: int | None) -> RawBody | None:
        """Take the rest of the body, so many bytes (None: to its own end). Nothing may be buffered.

        None if it cannot be taken: where it goes on is not known, or nothing is left.
        """
        ...

    def resume(self, *, is_whole: bool) -> None:
        """Give the connection back to its transport, `is_whole` if the rest was taken to its end."""
        ...


class Sink(Protocol):
    """Where chunks go."""

    async def write(self, chunk: bytes, /) -> None:
        """Send a chunk."""
        ...

    def pending(self) -> int:
        """Return how many bytes wait to leave this process."""
        ...

    async def detach(self) -> RawSocket | None:
        """Flush, and return an end to send the rest on below the transport; None if that cannot be done."""
        ...

    async def fail(self, exc: OSError) -> Fault | OSError:
        """Return what a failure to send means."""
        ...


class FileSource(Protocol):
    """A file on its way out."""

    async def read(self) -> bytes:
        """Return the next block, b"" at the end. Raises Fault."""
        ...

    async def send_to(self, descriptor: int) -> int:
        """Send some of what a socket takes without waiting; return how many bytes, 0 if none. Raises Fault, OSError."""
        ...

    @property
    def late_bytes(self) -> int:
        """Bytes sent by a call whose wait was cancelled."""
        ...


class Carrier:
    """Carries bodies, and shares the memory for chunks among those that are on their way at once."""

    def __init__(self, lanes: Lanes) -> None:
        self._is_auto = lanes == "auto"
        self._has_splice = can_splice()
        #: Transfers on the direct copy lane now.
        self._copies = 0

    async def carry(
        self,
        transfer: Transfer,
        source: Source,
        sink: Sink,
        finish: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Carry a body from source to sink, on the cheapest lane that both allow.

        Raises Fault for the source, a filter or a side that stalls, and what the sink says of a failure to send.
        """
        if not self.may_detach(transfer) or not source.pause():
            await transfer.pour(sink.write, sink.pending, finish)
            return
        is_whole = False
        try:
            end = await _empty_buffers(transfer, source, sink)
            if end is not None:
                try:
                    is_whole = await self._carry_rest(transfer, source, sink, end)
                finally:
                    end.close()
        finally:
            # Also after a failure: the rest of a refused upload must still be drained.
            source.resume(is_whole=is_whole)
        await transfer.pour(sink.write, sink.pending, finish)

    async def carry_file(
        self, transfer: Transfer, source: FileSource, sink: Sink, finish: Callable[[], Awaitable[None]]
    ) -> None:
        """Carry a file to a client: in the kernel (sendfile) where the client's end is plain TCP. Raises as `carry`."""
        if self._is_auto and (transfer.left_bytes or 0) >= MIN_RAW_BYTES:
            with transfer.watched(sink.pending):
                end = await sink.detach()
            if end is not None:
                try:
                    await _send_file(transfer, source, end, sink)
                finally:
                    end.close()
        await transfer.pour(sink.write, sink.pending, finish)

    def pulled(self, transfer: Transfer, source: Source) -> BodyReader:
        """Return a body for an action that pulls it in pieces of its own."""
        return BodyReader(self, transfer, source)

    def may_detach(self, transfer: Transfer) -> bool:
        """Say whether what is left of a body is worth to be taken below its transport."""
        left = transfer.left_bytes
        return self._is_auto and (left is None or left >= MIN_RAW_BYTES)

    @contextlib.contextmanager
    def copying(self) -> Iterator[None]:
        """Count a transfer among those that share the memory for chunks."""
        self._copies += 1
        try:
            yield
        finally:
            self._copies -= 1

    def size_next(self, raw_body: RawBody, held_seconds: float, *, was_taken: bool) -> None:
        """Choose how large the next chunk may be, from how the last fared.

        Fewer, larger steps while the far side keeps up, but no more for all together than their share. What filters
        hold back for long comes in smaller steps, so that neither peer is left in silence.
        """
        if held_seconds > _HELD_SECONDS:
            raw_body.chunk_bytes = max(raw_body.chunk_bytes // 2, _MIN_HELD_BYTES)
        elif was_taken:
            share = max(ALL_CHUNKS_BYTES // (self._copies or 1), MIN_CHUNK_BYTES)
            raw_body.chunk_bytes = min(raw_body.chunk_bytes * 2, MAX_CHUNK_BYTES, share)
        else:
            raw_body.chunk_bytes = MIN_CHUNK_BYTES

    async def _carry_rest(self, transfer: Transfer, source: Source, sink: Sink, end: RawSocket) -> bool:
        """Carry what is left below the transports; say whether anything was."""
        raw_body = source.detach(transfer.left_bytes)
        if raw_body is None:
            return False
        if self._has_splice and not transfer.has_filters and not end.is_chunked and isinstance(raw_body, SizedRawBody):
            pipe = open_pipe()
            if pipe is not None:
                with pipe:
                    await _splice(transfer, raw_body, end, sink, pipe)
                return True
        with self.copying():
            await self._copy(transfer, raw_body, end, sink)
        return True

    async def _copy(self, transfer: Transfer, raw_body: RawBody, end: RawSocket, sink: Sink) -> None:
        pull = functools.partial(transfer.pull_from, raw_body.read)
        with transfer.watched(lambda: end.unsent_bytes):
            held = transfer.filter_seconds
            while not raw_body.is_ended and (chunk := await pull()):
                try:
                    was_taken = await end.send(chunk)
                except OSError as exc:
                    raise await sink.fail(exc) from exc
                held, held_before = transfer.filter_seconds, held
                self.size_next(raw_body, held - held_before, was_taken=was_taken)
                del chunk


class BodyReader:
    """A body that an action pulls in pieces of its own, straight from its socket once that can be done.

    A context manager: left, whatever is unread is the transport's again.
    """

    def __init__(self, carrier: Carrier, transfer: Transfer, source: Source) -> None:
        self._carrier = carrier
        self._transfer = transfer
        self._source = source
        self._raw_body: RawBody | None = None
        self._sharing = contextlib.ExitStack()
        self._is_paused = False
        self._held_seconds = 0.0

    def __enter__(self) -> Self:
        """Hold the transport back, if the body is worth it."""
        self._is_paused = self._carrier.may_detach(self._transfer) and self._source.pause()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the connection back to its transport."""
        self.give_back()

    async def pull(self) -> bytes:
        """Return the next chunk, see Transfer.pull."""
        if self._is_paused and self._raw_body is None and not self._source.has_buffered:
            self._detach()
        if not self._is_paused or self._raw_body is None:
            return await self._transfer.pull()
        raw_body = self._raw_body
        held, self._held_seconds = self._held_seconds, self._transfer.filter_seconds
        self._carrier.size_next(raw_body, self._held_seconds - held, was_taken=True)
        chunk = await self._transfer.pull_from(raw_body.read)
        if raw_body.is_ended:
            # What the action still does may take long: the transport is to notice if the client leaves.
            self.give_back()
        return chunk

    def give_back(self) -> None:
        """Let the transport have the connection again, and notice if the client leaves. Nobody may be pulling."""
        self._sharing.close()
        if self._is_paused:
            self._is_paused = False
            self._source.resume(is_whole=self._raw_body is not None and self._raw_body.is_ended)

    def _detach(self) -> None:
        self._raw_body = self._source.detach(self._transfer.left_bytes)
        if self._raw_body is None:
            self.give_back()
        else:
            self._sharing.enter_context(self._carrier.copying())


async def _send_file(transfer: Transfer, source: FileSource, end: RawSocket, sink: Sink) -> None:
    transfer.lane = Lane.SPLICE.value
    send = functools.partial(source.send_to, end.descriptor)
    with transfer.watched(lambda: 0):
        while transfer.left_bytes:
            before = transfer.moved_bytes
            await end.take_turn()
            try:
                await transfer.pull_count(send)
                if transfer.moved_bytes == before:
                    await end.wait_writable()
            except OSError as exc:
                raise await sink.fail(exc) from exc
            except asyncio.CancelledError:
                transfer.count_late(source.late_bytes)
                raise


async def _empty_buffers(transfer: Transfer, source: Source, sink: Sink) -> RawSocket | None:
    """Pass on what came in before the pause, in order, and wait until it has left: bytes must not overtake."""
    with transfer.watched(sink.pending):
        while source.has_buffered:
            await sink.write(await transfer.pull())
        return await sink.detach()


async def _splice(transfer: Transfer, raw_body: SizedRawBody, end: RawSocket, sink: Sink, pipe: Pipe) -> None:
    transfer.lane = Lane.SPLICE.value
    fill = functools.partial(_fill, pipe, raw_body)
    with transfer.watched(lambda: pipe.held_bytes):
        while raw_body.left:
            await transfer.pull_count(fill)
            try:
                await pipe.empty_into(end)
            except OSError as exc:
                raise await sink.fail(exc) from exc


async def _fill(pipe: Pipe, raw_body: SizedRawBody) -> int:
    """Take bytes into the pipe and return how many."""
    try:
        size = await pipe.fill_from(raw_body.end, raw_body.left)
    except OSError as exc:
        raise raw_body.lost() from exc
    if not size:
        raise raw_body.lost()
    raw_body.left -= size
    return size

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
from gateway.transfer.raw_body import Detached, DetachedBytes
from gateway.transfer.raw_socket import LEAST_CHUNK_BYTES, MOST_CHUNK_BYTES, SocketEnd
from gateway.transfer.splice import Pipe, can_splice, open_pipe
from gateway.transfer.transfer import Transfer

Lanes = Literal["auto", "copy"]
#: Below this the descriptors and the pipe cost more than they save.
LEAST_BYTES: Final = 2**18
#: What the chunks of all transfers on the direct copy lane may hold together, but for the least each.
ALL_CHUNKS_BYTES: Final = 8 * 2**20
#: A chunk that filters (a rate, say) held back for longer than this was too large, down to so many bytes.
_HELD_SECONDS: Final = 0.25
_LEAST_HELD_BYTES: Final = 8 * 1024


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

    def detach(self, left: int | None) -> Detached | None:
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

    async def detach(self) -> SocketEnd | None:
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
        if self._is_auto and (transfer.left_bytes or 0) >= LEAST_BYTES:
            with transfer.watched(sink.pending):
                end = await sink.detach()
            if end is not None:
                try:
                    await _send_file(transfer, source, end, sink)
                finally:
                    end.close()
        await transfer.pour(sink.write, sink.pending, finish)

    def pulled(self, transfer: Transfer, source: Source) -> PulledBody:
        """Return a body for an action that pulls it in pieces of its own."""
        return PulledBody(self, transfer, source)

    def may_detach(self, transfer: Transfer) -> bool:
        """Say whether what is left of a body is worth to be taken below its transport."""
        left = transfer.left_bytes
        return self._is_auto and (left is None or left >= LEAST_BYTES)

    @contextlib.contextmanager
    def copying(self) -> Iterator[None]:
        """Count a transfer among those that share the memory for chunks."""
        self._copies += 1
        try:
            yield
        finally:
            self._copies -= 1

    def size_next(self, detached: Detached, held_seconds: float, *, was_taken: bool) -> None:
        """Choose how large the next chunk may be, from how the last fared.

        Fewer, larger steps while the far side keeps up, but no more for all together than their share. What filters
        hold back for long comes in smaller steps, so that neither peer is left in silence.
        """
        if held_seconds > _HELD_SECONDS:
            detached.chunk_bytes = max(detached.chunk_bytes // 2, _LEAST_HELD_BYTES)
        elif was_taken:
            share = max(ALL_CHUNKS_BYTES // (self._copies or 1), LEAST_CHUNK_BYTES)
            detached.chunk_bytes = min(detached.chunk_bytes * 2, MOST_CHUNK_BYTES, share)
        else:
            detached.chunk_bytes = LEAST_CHUNK_BYTES

    async def _carry_rest(self, transfer: Transfer, source: Source, sink: Sink, end: SocketEnd) -> bool:
        """Carry what is left below the transports; say whether anything was."""
        detached = source.detach(transfer.left_bytes)
        if detached is None:
            return False
        if self._has_splice and not transfer.is_seen and not end.is_chunked and isinstance(detached, DetachedBytes):
            pipe = open_pipe()
            if pipe is not None:
                with pipe:
                    await _splice(transfer, detached, end, sink, pipe)
                return True
        with self.copying():
            await self._copy(transfer, detached, end, sink)
        return True

    async def _copy(self, transfer: Transfer, detached: Detached, end: SocketEnd, sink: Sink) -> None:
        pull = functools.partial(transfer.pull_from, detached.read)
        with transfer.watched(lambda: end.unsent_bytes):
            held = transfer.filter_seconds
            while not detached.is_ended and (chunk := await pull()):
                try:
                    was_taken = await end.send(chunk)
                except OSError as exc:
                    raise await sink.fail(exc) from exc
                held, held_before = transfer.filter_seconds, held
                self.size_next(detached, held - held_before, was_taken=was_taken)
                del chunk


class PulledBody:
    """A body that an action pulls in pieces of its own, straight from its socket once that can be done.

    A context manager: left, whatever is unread is the transport's again.
    """

    def __init__(self, carrier: Carrier, transfer: Transfer, source: Source) -> None:
        self._carrier = carrier
        self._transfer = transfer
        self._source = source
        self._detached: Detached | None = None
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
        if self._is_paused and self._detached is None and not self._source.has_buffered:
            self._detach()
        if not self._is_paused or self._detached is None:
            return await self._transfer.pull()
        detached = self._detached
        held, self._held_seconds = self._held_seconds, self._transfer.filter_seconds
        self._carrier.size_next(detached, self._held_seconds - held, was_taken=True)
        chunk = await self._transfer.pull_from(detached.read)
        if detached.is_ended:
            # What the action still does may take long: the transport is to notice if the client leaves.
            self.give_back()
        return chunk

    def give_back(self) -> None:
        """Let the transport have the connection again, and notice if the client leaves. Nobody may be pulling."""
        self._sharing.close()
        if self._is_paused:
            self._is_paused = False
            self._source.resume(is_whole=self._detached is not None and self._detached.is_ended)

    def _detach(self) -> None:
        self._detached = self._source.detach(self._transfer.left_bytes)
        if self._detached is None:
            self.give_back()
        else:
            self._sharing.enter_context(self._carrier.copying())


async def _send_file(transfer: Transfer, source: FileSource, end: SocketEnd, sink: Sink) -> None:
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


async def _empty_buffers(transfer: Transfer, source: Source, sink: Sink) -> SocketEnd | None:
    """Pass on what came in before the pause, in order, and wait until it has left: bytes must not overtake."""
    with transfer.watched(sink.pending):
        while source.has_buffered:
            await sink.write(await transfer.pull())
        return await sink.detach()


async def _splice(transfer: Transfer, detached: DetachedBytes, end: SocketEnd, sink: Sink, pipe: Pipe) -> None:
    transfer.lane = Lane.SPLICE.value
    fill = functools.partial(_fill, pipe, detached)
    with transfer.watched(lambda: pipe.held_bytes):
        while detached.left:
            await transfer.pull_count(fill)
            try:
                await pipe.empty_into(end)
            except OSError as exc:
                raise await sink.fail(exc) from exc


async def _fill(pipe: Pipe, detached: DetachedBytes) -> int:
    """Take bytes into the pipe and return how many."""
    try:
        size = await pipe.fill_from(detached.end, detached.left)
    except OSError as exc:
        raise detached.lost() from exc
    if not size:
        raise detached.lost()
    detached.left -= size
    return size

"""The lanes: how the bytes of a transfer are moved, and the one place that chooses.

| lane   | reads                      | writes                     | used for                                     |
|--------|----------------------------|----------------------------|----------------------------------------------|
| copy   | aiohttp's stream           | aiohttp's writer           | TLS, chunked responses, short bodies         |
| direct | the socket, below aiohttp  | the socket, below asyncio  | both ends plain TCP, a filter sees the bytes |
| splice | the socket, into a pipe    | the pipe, into the socket  | both ends plain TCP, nothing sees the bytes  |
| splice | a file, by sendfile        | (the same call)            | a file to a plain TCP client (`sendfile`)    |

Bodies on the express lane (`gateway.express`) are passed on whole, by nothing of this.

Behaviour, counting and limits are the same on each: a lane only replaces what `pump` reads from and writes to. A body
that an action consumes itself (to disk, file by file, encoded anew) is read by `BodyReader`, below aiohttp where that
can be done.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Final, Protocol, Self

from gateway.errors import Fault
from gateway.transfer.exhaustion import exhaustion_fault
from gateway.transfer.interface import Source
from gateway.transfer.meter import Meter
from gateway.transfer.progress import Progress
from gateway.transfer.pump import Transfer, pump
from gateway.transfer.raw_body import RawBody, SizedRawBody
from gateway.transfer.raw_socket import MAX_CHUNK_BYTES, MAX_LARGE_BYTES, MIN_CHUNK_BYTES, RawSocket
from gateway.transfer.sendfile import SendfileLane, SendfileSource
from gateway.transfer.splice import Pipe, can_splice, open_pipe

#: Bodies shorter than this stay on the copy lane: the descriptors and the pipe cost more than they save.
MIN_RAW_BYTES: Final = 2**18
#: What the chunks of all transfers on the direct lane may hold together, except for the minimum each.
ALL_CHUNKS_BYTES: Final = 8 * 2**20
#: A chunk that filters (a rate limit, say) delayed for longer than this was too large; the smallest it gets.
_DELAY_SECONDS: Final = 0.25
_MIN_DELAYED_BYTES: Final = 8 * 1024
#: Chunks grow where a receive fills this part of one, and shrink where it fills less than the other part. The receives
#: of a fast sender differ a lot: chunks that followed the last one closely took 3 % more CPU time.
_GROWING_PART: Final = 4
_SHRINKING_PART: Final = 16


class LaneName(enum.StrEnum):
    """The lane's name in log and metrics."""

    COPY = "copy"
    DIRECT = "direct"
    SPLICE = "splice"
    EXPRESS = "express"


class PausableSource(Source, Protocol):
    """A source whose rest can be read below its transport: the calls are `PausableStream`'s."""

    def pause(self) -> bool:
        """Stop receiving through the transport; return whether that can be done."""
        ...

    def fetch_buffered(self) -> bool:
        """Have the parser hand out what came before the pause; return whether a read does not wait."""
        ...

    def open_raw_body(self, length: int | None) -> RawBody | None:
        """Return the rest of the body, `length` bytes (None: to its own end). Nothing may be buffered.

        None if it cannot be read from the socket: its position is not known, or nothing is left.
        """
        ...

    def resume(self, *, is_whole: bool) -> None:
        """Give the connection back to its transport, `is_whole` if the rest was read to its end."""
        ...


class Sink(Protocol):
    """Where chunks go."""

    async def write(self, chunk: bytes, /) -> None:
        """Send a chunk. Raises OSError or Fault if the peer is gone."""
        ...

    @property
    def acknowledged(self) -> Progress:
        """Return the progress of the peer, see `gateway.transfer.progress`."""
        ...

    async def open_raw_socket(self) -> RawSocket | None:
        """Flush, and return a socket to send the rest on below the transport; None if that cannot be done."""
        ...

    def translate_error(self, exc: OSError) -> Fault | OSError:
        """Return what a failure to send means."""
        ...


class FileSource(Source, Protocol):
    """An open file."""

    @property
    def sendfile_source(self) -> SendfileSource | None:
        """The same file for `sendfile`; None if its storage cannot do that."""
        ...


class CopyLane:
    """Through the transports."""

    def __init__(self, source: Source, sink: Sink) -> None:
        self.read = source.read
        self.write = sink.write
        self.acknowledged = sink.acknowledged


class DirectLane:
    """From socket to socket, below the transports."""

    def __init__(self, transfer: Transfer, body: RawBody, socket: RawSocket, sink: Sink, memory: ChunkMemory) -> None:
        self._meter = transfer.meter
        self._meter.lane = LaneName.DIRECT
        self._body = body
        self._socket = socket
        self._sink = sink
        self._sizer = ChunkSizer(memory, self._meter)
        self.read = body.read
        self.acknowledged = socket.acknowledged

    async def write(self, chunk: bytes) -> None:
        """Send a chunk, and choose the size of the next."""
        try:
            was_taken = await self._socket.send(chunk)
        except OSError as exc:
            raise exhaustion_fault(exc) or self._sink.translate_error(exc) from exc
        self._sizer.choose(self._body, was_taken=was_taken)


class SpliceLane:
    """From socket to socket through a pipe in the kernel."""

    def __init__(self, transfer: Transfer, body: SizedRawBody, socket: RawSocket, sink: Sink, pipe: Pipe) -> None:
        transfer.meter.lane = LaneName.SPLICE
        self._body = body
        self._socket = socket
        self._sink = sink
        self._pipe = pipe
        self.acknowledged = socket.acknowledged

    async def read(self) -> int:
        """Fill the pipe."""
        body = self._body
        try:
            size = await self._pipe.fill_from(body.socket, body.remaining_bytes)
        except OSError as exc:
            raise exhaustion_fault(exc) or body.lost() from exc
        if not size:
            raise body.lost()
        body.skip(size)
        return size

    async def write(self, _size: int) -> None:
        """Empty the pipe."""
        try:
            await self._pipe.empty_into(self._socket)
        except OSError as exc:
            raise exhaustion_fault(exc) or self._sink.translate_error(exc) from exc


class ChunkMemory:
    """The memory for chunks, shared by the transfers that read below their transport at once."""

    def __init__(self) -> None:
        self._reader_count = 0

    @contextlib.contextmanager
    def share(self) -> Iterator[None]:
        """Count a transfer among those that share."""
        self._reader_count += 1
        try:
            yield
        finally:
            self._reader_count -= 1

    def size_next(self, body: RawBody, delayed_seconds: float, *, was_taken: bool) -> None:
        """Choose how large the next chunk may be, from how long the last one took and how much was received for it.

        Fewer, larger chunks while the sink keeps up, but all together no more than their share, and no larger than the
        source fills them: memory is made for each. What filters delay for long comes in smaller chunks, so that neither
        peer sees long silences.
        """
        size, received = body.chunk_bytes, body.received_bytes
        if delayed_seconds > _DELAY_SECONDS:
            body.chunk_bytes = max(size // 2, _MIN_DELAYED_BYTES)
        elif not was_taken:
            body.chunk_bytes = MIN_CHUNK_BYTES
        else:
            if received >= size // _GROWING_PART:
                size *= 2
            elif received < size // _SHRINKING_PART and size > MIN_CHUNK_BYTES:
                size = max(size // 2, MIN_CHUNK_BYTES)
            share = max(ALL_CHUNKS_BYTES // (self._reader_count or 1), MIN_CHUNK_BYTES)
            body.chunk_bytes = min(size, body.most_bytes, share)


class ChunkSizer:
    """Chooses the chunk sizes of one transfer, from what its filters and its sink did with the chunk before."""

    def __init__(self, memory: ChunkMemory, meter: Meter) -> None:
        self._memory = memory
        self._meter = meter
        self._filter_seconds = meter.filter_seconds

    def choose(self, body: RawBody, *, was_taken: bool) -> None:
        """Choose the size of the next chunk; `was_taken` if the sink took the last one at once."""
        before, self._filter_seconds = self._filter_seconds, self._meter.filter_seconds
        self._memory.size_next(body, self._filter_seconds - before, was_taken=was_taken)


class Lanes:
    """Moves bodies, each on the cheapest lane that both ends allow."""

    def __init__(self, *, is_raw_allowed: bool) -> None:
        self._is_raw_allowed = is_raw_allowed
        self._has_splice = can_splice()
        self._memory = ChunkMemory()

    async def pump(
        self,
        transfer: Transfer,
        source: PausableSource,
        sink: Sink,
        send_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Move a body from source to sink, then await `send_end`. Raises as `gateway.transfer.pump.pump`."""
        if self._may_read_raw(transfer) and source.pause():
            is_whole = False
            try:
                socket = await _pass_on_buffered(transfer, source, sink)
                if socket is not None:
                    with contextlib.closing(socket):
                        is_whole = await self._pump_raw(transfer, source, sink, socket)
            finally:
                # Also after a failure: the rest of a refused upload must still be drained.
                source.resume(is_whole=is_whole)
        # Moves what no other lane took, nothing if all is moved, and passes the end on.
        await pump(transfer, CopyLane(source, sink), send_end)
        transfer.mark_complete()

    async def pump_file(
        self, transfer: Transfer, file: FileSource, sink: Sink, send_end: Callable[[], Awaitable[None]]
    ) -> None:
        """Move a file to a client, then await `send_end`. Raises as `pump`."""
        source = file.sendfile_source
        if source is not None and self._is_raw_allowed and (transfer.remaining_bytes or 0) >= MIN_RAW_BYTES:
            with transfer.watched(sink.acknowledged):
                socket = await sink.open_raw_socket()
            if socket is not None:
                with contextlib.closing(socket):
                    transfer.meter.lane = LaneName.SPLICE
                    await pump(transfer, SendfileLane(transfer, source, socket, sink))
        await pump(transfer, CopyLane(file, sink), send_end)
        transfer.mark_complete()

    def read_body(self, transfer: Transfer, source: PausableSource, most_bytes: int = MAX_CHUNK_BYTES) -> BodyReader:
        """Return the reader of a body that an action consumes itself, in chunks of up to `most_bytes`."""
        return BodyReader(
            transfer, source, self._memory, is_raw_allowed=self._may_read_raw(transfer), most_bytes=most_bytes
        )

    def _may_read_raw(self, transfer: Transfer) -> bool:
        length = transfer.remaining_bytes
        return self._is_raw_allowed and (length is None or length >= MIN_RAW_BYTES)

    async def _pump_raw(self, transfer: Transfer, source: PausableSource, sink: Sink, socket: RawSocket) -> bool:
        """Move the rest below the transports; return whether it was moved to its end."""
        body = source.open_raw_body(transfer.remaining_bytes)
        if body is None:
            return False
        body.socket.turns = socket.turns = transfer.turns
        may_splice = self._has_splice and not transfer.filters and not socket.is_chunked
        if may_splice and isinstance(body, SizedRawBody) and (pipe := open_pipe()) is not None:
            with pipe:
                await pump(transfer, SpliceLane(transfer, body, socket, sink, pipe))
            return True
        if not any(each.keeps_chunks for each in transfer.filters):
            body.most_bytes = MAX_LARGE_BYTES
        with self._memory.share():
            await pump(transfer, DirectLane(transfer, body, socket, sink, self._memory))
        return True


class BodyReader:
    """Reads a body for an action that consumes it itself, from the socket once everything buffered was read.

    A context manager: after it, whatever is unread is the transport's again.
    """

    def __init__(
        self,
        transfer: Transfer,
        source: PausableSource,
        memory: ChunkMemory,
        *,
        is_raw_allowed: bool,
        most_bytes: int,
    ) -> None:
        self._transfer = transfer
        self._most_bytes = most_bytes
        self._source = source
        self._memory = memory
        self._is_raw_allowed = is_raw_allowed
        self._raw_body: RawBody | None = None
        self._sharing = contextlib.ExitStack()
        self._is_paused = False
        self._has_pulled = False
        self._sizer = ChunkSizer(memory, transfer.meter)

    def __enter__(self) -> Self:
        """Pause the transport, if the body is to be read below it."""
        self._is_paused = self._is_raw_allowed and self._source.pause()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the connection back to its transport."""
        self.give_back()

    async def take_turn(self) -> None:
        """Let other bodies work; called by those who split a chunk into many parts."""
        turns = self._transfer.turns
        if not turns.has_time():
            await turns.wait()

    async def pull(self) -> bytes:
        """Return the next chunk, see `Transfer.pull`."""
        if self._has_pulled:
            await self.take_turn()
        self._has_pulled = True
        if self._is_paused and self._raw_body is None and not self._source.fetch_buffered():
            self._open_raw_body()
        body = self._raw_body
        if not self._is_paused or body is None:
            return await self._transfer.pull_source()
        self._sizer.choose(body, was_taken=True)
        chunk = await self._transfer.pull(body.read)
        if body.is_ended:
            # What the action still does may take long: the transport has to notice a client that leaves.
            self.give_back()
        return chunk

    def give_back(self) -> None:
        """Give the connection back to its transport, which notices a client that leaves. No pull may be under way."""
        self._sharing.close()
        if self._is_paused:
            self._is_paused = False
            self._source.resume(is_whole=self._raw_body is not None and self._raw_body.is_ended)

    def _open_raw_body(self) -> None:
        self._raw_body = self._source.open_raw_body(self._transfer.remaining_bytes)
        if self._raw_body is None:
            self.give_back()
        else:
            self._raw_body.most_bytes = self._most_bytes
            self._raw_body.socket.turns = self._transfer.turns
            self._transfer.meter.lane = LaneName.DIRECT
            self._sharing.enter_context(self._memory.share())


async def _pass_on_buffered(transfer: Transfer, source: PausableSource, sink: Sink) -> RawSocket | None:
    """Pass on what was received before the pause, and wait until it was sent: bytes must not overtake each other."""
    turns = transfer.turns
    with transfer.watched(sink.acknowledged):
        while source.fetch_buffered():
            await sink.write(await transfer.pull_source())
            if not turns.has_time():
                await turns.wait()
        return await sink.open_raw_socket()

"""A share of a route's requests sent again to a second upstream, or written to a directory.

The body is copied as the client sent it: the chunks that the primary takes go into a bounded queue, and a task of the
mirror sends them. A mirror that does not keep up is dropped, cut and counted; the primary never waits for one. The
mirror's response is read and dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Final

from gateway.actions.request_head import make_request_head
from gateway.config.actions import Mirror as MirrorConfig
from gateway.downstream import Exchange
from gateway.errors import Fault, FaultKind, Outcome
from gateway.http.routing import RouteMatch
from gateway.observe.stats import RouteStats
from gateway.storage import NameRules, Storage
from gateway.transfer import Progress, Transfer
from gateway.upstream import RequestHead, UpstreamPool, UpstreamSink

#: Limit for the sync of a body that is written to a directory, see `store.sync_timeout`.
MIRROR_SYNC_SECONDS: Final = 300.0
#: Smaller chunks in the queue are joined.
_JOINED_BYTES: Final = 4096
#: How often a write that waits is looked at.
_CHECKS_PER_LIMIT: Final = 4


class Mirror:
    """The mirror of one route. Close it after use."""

    def __init__(self, config: MirrorConfig, target: UpstreamPool | Storage) -> None:
        self._config = config
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()

    def tee(self, exchange: Exchange, matched: RouteMatch) -> Tee | None:
        """Begin to mirror a request if it is chosen; return the filter that copies its body, None if it is not."""
        if random.random() >= self._config.percent:
            return None
        tee = Tee(self._config.buffer, exchange.stats)
        if isinstance(self._target, UpstreamPool):
            try:
                head = make_request_head(exchange, matched.path, host="upstream", framing=self._target.framing)
            except Fault as fault:
                # A mirror that takes no chunked body, for example: the primary is not affected.
                tee.end(fault.outcome)
                return None
            work = partial(_send, self._target, head, tee, has_body=exchange.body is not None)
        else:
            work = partial(_write, self._target, tee)
        task = asyncio.get_running_loop().create_task(self._run(work, tee), name="mirror")
        tee.on_drop = task.cancel
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if exchange.body is None:
            tee.finish()
        return tee

    async def close(self) -> None:
        """Cut what is still being mirrored."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]], tee: Tee) -> None:
        # Called here: a task that is cancelled before its first step leaves no coroutine that was never awaited.
        try:
            await work()
            tee.end(Outcome.COMPLETE)
        except Fault as fault:
            tee.end(fault.outcome)
        except TimeoutError:
            tee.end(Outcome.UPSTREAM_SLOW)
        finally:
            # Dropped, or cut with the primary or by a shutdown.
            tee.end(Outcome.CANCELLED)


class Tee:
    """The body of one mirrored request: a filter of its transfer that never refuses, and a source for the mirror."""

    keeps_chunks = True

    def __init__(self, room_bytes: float, stats: RouteStats) -> None:
        self._room = room_bytes
        self._stats = stats
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._is_whole = False
        self._is_ended = False
        self._news = asyncio.Event()
        #: Called when the mirror is dropped, or the body is cut.
        self.on_drop: Callable[[], object] = lambda: None
        #: The primary's transfer, where others may still refuse what was shown here: then its end decides.
        self.primary: Transfer | None = None

    def feed_data(self, chunk: bytes) -> None:
        """Queue a chunk, or drop the mirror if its queue is full."""
        if self._is_ended:
            self._stats.mirror_bytes["dropped"] += len(chunk)
            return
        if len(self._chunks) > 1 and len(self._chunks[-1]) + len(chunk) <= _JOINED_BYTES:
            # A chunk of one byte takes forty. The first may be on its way.
            self._chunks[-1] += chunk
        else:
            self._chunks.append(chunk)
        self._held += len(chunk)
        self._news.set()
        if self._held > self._room:
            self.end(Outcome.LIMIT)
            self.on_drop()

    def finish(self) -> None:
        """Record the end of the body."""
        if self.primary is None:
            self._is_whole = True
            self._news.set()

    def close(self) -> None:
        """The primary's transfer has ended: a body that was not whole is cut here, too."""
        if self.primary is not None and self.primary.outcome is Outcome.COMPLETE:
            self.primary = None
            self.finish()
        if not self._is_whole and not self._is_ended:
            self.end(Outcome.CANCELLED)
            self.on_drop()

    def end(self, outcome: Outcome) -> None:
        """Count how it ended. Only the first call counts; what is still held is dropped."""
        if self._is_ended:
            return
        self._is_ended = True
        self._stats.mirrors[outcome] += 1
        self._stats.mirror_bytes["dropped"] += self._held
        self._chunks.clear()
        self._held = 0

    async def read(self) -> bytes:
        """Return the next chunk for the mirror, b"" at the end. Raises Fault where the mirror was dropped or cut.

        A body whose chunks were dropped must not end normally: its reader may run before it is cancelled.
        """
        # Where others may still refuse, the last chunk waits for their word: a length would be fulfilled with it.
        while not self._is_whole and len(self._chunks) <= (0 if self.primary is None else 1):
            self._news.clear()
            await self._news.wait()
        if self._is_ended:
            raise Fault(FaultKind.CANCELLED, "The mirror was dropped, or the request it mirrors was cut.")
        return self._chunks[0] if self._chunks else b""

    def confirm(self, chunk: bytes) -> None:
        """Record that the mirror has taken the chunk read last."""
        if self._chunks and self._chunks[0] is chunk:
            self._chunks.popleft()
            self._held -= len(chunk)
            self._stats.mirror_bytes["sent"] += len(chunk)


class _TeeBody:
    """The mirrored body, sent to the mirror's upstream."""

    def __init__(self, tee: Tee, idle_seconds: float) -> None:
        self._tee = tee
        self._idle_seconds = idle_seconds

    async def send_to(self, sink: UpstreamSink) -> None:
        """Send the chunks as they come. Raises Fault where the mirror was dropped or is stuck."""
        while chunk := await self._tee.read():
            try:
                async with asyncio.timeout(self._idle_seconds) as limit:
                    with _extended(limit, self._idle_seconds, sink.acknowledged):
                        await sink.write(chunk)
            except TimeoutError:
                # An OSError, which would mean that the connection was lost.
                raise Fault(FaultKind.UPSTREAM_STUCK, "The mirror stopped reading.") from None
            self._tee.confirm(chunk)


@contextlib.contextmanager
def _extended(limit: asyncio.Timeout, idle_seconds: float, progress: Progress) -> Iterator[None]:
    """Put a limit off while there is progress: a peer that reads slowly is not silent."""
    if math.isinf(idle_seconds):
        yield
        return
    loop, seconds = asyncio.get_running_loop(), idle_seconds / _CHECKS_PER_LIMIT
    seen = progress()
    timer: asyncio.TimerHandle

    def check() -> None:
        nonlocal seen, timer
        if (now_seen := progress()) > seen:
            seen = now_seen
            limit.reschedule(loop.time() + idle_seconds)
        timer = loop.call_later(seconds, check)

    timer = loop.call_later(seconds, check)
    try:
        yield
    finally:
        timer.cancel()


async def _send(upstream: UpstreamPool, head: RequestHead, tee: Tee, *, has_body: bool) -> None:
    """Send a mirrored request, and read and drop its response."""
    body = _TeeBody(tee, upstream.idle_seconds) if has_body else None
    async with upstream.capacity, await upstream.send(head, body) as response:
        is_whole = False
        while not is_whole:
            async with asyncio.timeout(upstream.idle_seconds):
                is_whole = not await response.read()


async def _write(storage: Storage, tee: Tee) -> None:
    async with storage.open_upload(NameRules(naming="uuid")) as upload:
        file = await upload.begin("mirrored.body", is_hashed=False)
        while chunk := await tee.read():
            await file.write(chunk)
            tee.confirm(chunk)
        await file.finish()
        await upload.commit()

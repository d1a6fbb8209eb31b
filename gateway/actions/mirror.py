"""A share of a route's requests told again to a second upstream, or written to a directory, without being felt.

The body is teed as the client sent it: what the primary takes is noted in a bounded queue, and a task of the mirror's
own sends it. A mirror that does not keep up is dropped, cut and counted; nobody ever waits for one. Its answer is read
and forgotten.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from gateway.actions.body_shape import framing_headers
from gateway.config.model import Mirror as MirrorConfig
from gateway.config.values import Endpoint
from gateway.downstream import Exchange
from gateway.errors import Fault, FaultKind, Outcome
from gateway.http.headers import Header, encode_head, request_headers
from gateway.http.routing import RouteMatch
from gateway.observe.stats import RouteStats
from gateway.storage import DiskThreads, Upload
from gateway.transfer import Transfer
from gateway.upstream import UpstreamPool, UpstreamRequest, UpstreamSink

_PERCENT: Final = 100.0


class Mirror:
    """The mirror of one route. `close` it."""

    def __init__(self, config: MirrorConfig, upstream: UpstreamPool | None, disk_threads: DiskThreads) -> None:
        self._config = config
        self._upstream = upstream
        self._disk_threads = disk_threads
        self._tasks: set[asyncio.Task[None]] = set()

    def tee(self, exchange: Exchange, matched: RouteMatch) -> Tee | None:
        """Begin to mirror a request, if the dice say so: return what is to be shown its body."""
        if random.random() * _PERCENT >= self._config.percent:
            return None
        tee = Tee(self._config.buffer, exchange.named.stats)
        if self._upstream is not None:
            try:
                request = _Request(exchange, matched, self._upstream)
            except Fault as fault:
                # A mirror that takes no chunks, say: its business, and not the primary's.
                tee.end(fault.outcome)
                return None
            work = _send(self._upstream, request, tee)
        else:
            work = _write(self._disk_threads, Path(self._config.directory or ""), tee)
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

    async def _run(self, work: Coroutine[Any, Any, None], tee: Tee) -> None:
        try:
            await work
            tee.end(Outcome.COMPLETE)
        except Fault as fault:
            tee.end(fault.outcome)
        except TimeoutError:
            tee.end(Outcome.UPSTREAM_SLOW)
        finally:
            # Dropped, or cut with the primary or the gateway.
            tee.end(Outcome.CANCELLED)


class Tee:
    """The body of one mirrored request: a filter of its transfer that never refuses, and a source for the mirror."""

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
        self.judge: Transfer | None = None

    def feed_data(self, chunk: bytes) -> None:
        """Note a chunk, or drop the mirror if it is too far behind."""
        if self._is_ended:
            self._stats.mirror_bytes["dropped"] += len(chunk)
            return
        self._chunks.append(chunk)
        self._held += len(chunk)
        self._news.set()
        if self._held > self._room:
            self.end(Outcome.LIMIT)
            self.on_drop()

    def finish(self) -> None:
        """Note the end of the body."""
        if self.judge is None:
            self._is_whole = True
            self._news.set()

    def close(self) -> None:
        """The primary's transfer has ended: a body that was not whole is cut here, too."""
        if self.judge is not None and self.judge.outcome is Outcome.COMPLETE:
            self.judge = None
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

        The end of a body whose chunks were dropped must not be told: whoever reads may wake before it is cancelled.
        """
        # Where others may still refuse, the last chunk waits for their word: a length would be fulfilled with it.
        while not self._is_whole and len(self._chunks) <= (0 if self.judge is None else 1):
            self._news.clear()
            await self._news.wait()
        if self._is_ended:
            raise Fault(FaultKind.CANCELLED, "The mirror was dropped, or the request it mirrors was cut.")
        return self._chunks[0] if self._chunks else b""

    def sent(self, chunk: bytes) -> None:
        """Note that the mirror has taken the chunk read last."""
        if self._chunks and self._chunks[0] is chunk:
            self._chunks.popleft()
            self._held -= len(chunk)
            self._stats.mirror_bytes["sent"] += len(chunk)


class _Request:
    """The request again, for the mirror's endpoint."""

    def __init__(self, exchange: Exchange, matched: RouteMatch, upstream: UpstreamPool) -> None:
        self.method = exchange.method
        self._target = f"{matched.path}{exchange.target.query}"
        self._headers: list[Header] = request_headers(exchange.headers, exchange.client_info, exchange.trace)
        self._framing = framing_headers(upstream.framing, exchange.length) if exchange.length != 0 else []

    def make(self, endpoint: Endpoint, carry: Callable[[UpstreamSink], Coroutine[Any, Any, None]]) -> UpstreamRequest:
        """Return what goes to an endpoint."""
        line = f"{self.method} {self._target} HTTP/1.1".encode("latin-1")
        head = encode_head(line, [(b"Host", endpoint.authority.encode()), *self._headers, *self._framing])
        is_chunked = bool(self._framing) and self._framing[0][0] != b"Content-Length"
        return UpstreamRequest(head, carry if self._framing else None, is_chunked=is_chunked)


async def _send(upstream: UpstreamPool, request: _Request, tee: Tee) -> None:
    idle = None if math.isinf(upstream.idle_seconds) else upstream.idle_seconds

    async def carry(sink: UpstreamSink) -> None:
        while chunk := await tee.read():
            async with asyncio.timeout(idle):
                await sink.write(chunk)
            tee.sent(chunk)

    async with upstream.capacity:
        response = await upstream.send(request.method, lambda endpoint: request.make(endpoint, carry), _not_noted)
        async with response, asyncio.timeout(idle):
            while await response.read():
                pass


async def _write(disk_threads: DiskThreads, directory: Path, tee: Tee) -> None:
    upload = Upload(disk_threads, directory, naming="uuid", if_exists="rename")
    async with upload:
        file = await upload.begin("mirrored.body")
        while chunk := await tee.read():
            await file.write(chunk)
            tee.sent(chunk)
        await file.finish()
        await upload.commit()


def _not_noted(_endpoint: Endpoint) -> None:
    """The log speaks of the primary's endpoint."""

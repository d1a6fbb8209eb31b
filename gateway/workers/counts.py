"""The counts of all workers: sent by each, added up in the supervisor.

A worker sends what has changed in its counts (SNAPSHOT) each second, when it is asked to (SCRAPE), before it drops
those of a route that a reload has removed, and at its end. So a worker that is killed loses at most a second, and what
a scrape has shown is never lost: it was sent. The supervisor reads what it has got when it is needed, in a thread.

    bytes   of a SNAPSHOT
    ------  -------------------------------------------------------------
    8       number of the SCRAPE it responds to, 0 without one
    rest    `observe.snapshot.pack` of the changes since the last SNAPSHOT
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Collection, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from gateway.observe.merge import Totals
from gateway.observe.snapshot import Records, compare, pack, take, take_routes, unpack
from gateway.observe.stats import Direction, Stats
from gateway.server import Gateway
from gateway.workers.channel import Channel, Kind
from gateway.workers.process import WorkerProcess

#: For a worker to respond to SCRAPE.
SCRAPE_SECONDS: Final = 1.0
#: Sent, but not read by the supervisor yet.
_MAX_HELD_BYTES: Final = 2**20
#: SNAPSHOTs that are kept for the thread: those of a second, in most cases.
_MAX_UNREAD: Final = 256
_HEAD: Final = struct.Struct("!Q")
_T = TypeVar("_T")
_log = logging.getLogger("gateway")


class CountSender:
    """Sends the counts of a worker. Made when its gateway exists."""

    def __init__(self, gateway: Gateway, channel: Channel) -> None:
        self._gateway = gateway
        self._channel = channel
        self._sent: Records = {}
        gateway.stats.before_drop = lambda: self._send(0)

    def send_regularly(self) -> None:
        """Send them, unless the supervisor is behind with reading."""
        if self._channel.held_bytes < _MAX_HELD_BYTES:
            self._send(0)

    def respond(self, scrape: int) -> None:
        """Send them for a scrape."""
        self._send(scrape)

    def _send(self, scrape: int) -> None:
        self._gateway.refresh_stats()
        records = take(self._gateway.stats)
        changes, self._sent = compare(self._sent, records), records
        self._channel.send_pickled(Kind.SNAPSHOT, _HEAD.pack(scrape) + pack(changes))


class WorkerCounts:
    """The counts of all workers, in the supervisor.

    `receive` and `retire` are to be called for each SNAPSHOT and each end of a worker; `close` it after use.
    """

    def __init__(self, own: Stats) -> None:
        """`own` are the supervisor's: the routes of the config in force, and the numbers of the gateway."""
        self._own = own
        #: Those of its routes, and what series these have.
        self._own_routes: Records = {}
        self._own_series: list[tuple[Hashable, ...]] = []
        #: Not read yet.
        self._unread: list[tuple[WorkerProcess, bytes]] = []
        #: The workers that were asked, by the number of the scrape.
        self._asked: dict[tuple[int, WorkerProcess], asyncio.Future[None]] = {}
        self._scrape = 0
        #: Touched by the thread only, which does one thing after the other.
        self._totals = Totals()
        self._thread = ThreadPoolExecutor(1, "metrics")

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=True)

    def receive(self, worker: WorkerProcess, content: bytes) -> None:
        """Take in a SNAPSHOT."""
        (scrape,) = _HEAD.unpack_from(content)
        self._unread.append((worker, content))
        if len(self._unread) > _MAX_UNREAD:
            self._read_sent()
        answer = self._asked.get((scrape, worker))
        if answer is not None and not answer.done():
            answer.set_result(None)

    def retire(self, worker: WorkerProcess) -> None:
        """Keep the counts of a worker that has ended."""
        self._read_sent()
        self.run(lambda: self._totals.retire(worker))
        for (_, other), answer in self._asked.items():
            if other is worker and not answer.done():
                answer.set_result(None)

    async def ask(self, workers: Collection[WorkerProcess]) -> int:
        """Have these send their counts of this moment; return how many have not done so within a second."""
        self._scrape += 1
        loop = asyncio.get_running_loop()
        asked = {(self._scrape, worker): loop.create_future() for worker in workers}
        self._asked |= asked
        for _, worker in asked:
            worker.channel.send(Kind.SCRAPE, self._scrape)
        try:
            _, silent = await asyncio.wait(asked.values(), timeout=SCRAPE_SECONDS) if asked else (None, ())
        finally:
            for key in asked:
                del self._asked[key]
        return len(silent)

    def run(self, work: Callable[[], _T]) -> Future[_T]:
        """Have the thread do some work."""
        future = self._thread.submit(work)
        future.add_done_callback(_report_bug)
        return future

    async def read(self, use: Callable[[Stats], _T]) -> _T:
        """Return what `use` makes of the counts that were sent so far; it is called in the thread."""
        self._read_sent()
        own = self._take_own()
        return await asyncio.wrap_future(self.run(lambda: use(self._totals.stats(own, self._own))))

    def _take_own(self) -> Records:
        """Return the supervisor's numbers. It has no exchanges: those of its routes change with their series only."""
        routes = self._own.routes.values()
        series = [(route.number, *route.transfers[Direction.UPLOAD].moved) for route in routes]
        if series != self._own_series:
            self._own_series, self._own_routes = series, take_routes(self._own)
        return take(self._own, self._own_routes)

    def _read_sent(self) -> None:
        unread, self._unread = self._unread, []
        if unread:
            self.run(lambda: self._update(unread))

    def _update(self, unread: list[tuple[WorkerProcess, bytes]]) -> None:
        for worker, content in unread:
            self._totals.update(worker, unpack(content[_HEAD.size :]))


def _report_bug(future: Future[_T]) -> None:
    exc = None if future.cancelled() else future.exception()
    if exc is not None:
        _log.error("bug in the counts of workers", exc_info=exc)

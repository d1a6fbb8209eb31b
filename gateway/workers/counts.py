"""The counts of all workers: sent by each, added up in the supervisor.

A worker sends its counts (SNAPSHOT) each second, when it is asked to (SCRAPE), before it drops those of a route that a
reload has removed, and at its end. So a worker that is killed loses at most a second, and what a scrape has shown is
never lost: it was sent. The supervisor keeps the last bytes of each worker and reads them when they are needed, in a
thread: 50 routes take a millisecond per worker.

    bytes   of a SNAPSHOT
    ------  -------------------------------------------------------------
    8       number of the SCRAPE it responds to, 0 without one
    1       1 if records are dropped after it: it must be read
    rest    `observe.snapshot.pack`
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from gateway.observe.merge import Totals, gateway_stats
from gateway.observe.snapshot import pack, take, unpack
from gateway.observe.stats import Stats
from gateway.server import Gateway
from gateway.workers.channel import Channel, Kind
from gateway.workers.process import WorkerProcess

#: For a worker to respond to SCRAPE.
SCRAPE_SECONDS: Final = 1.0
#: Sent, but not read by the supervisor yet.
_MAX_HELD_BYTES: Final = 2**20
_HEAD: Final = struct.Struct("!Q?")
_T = TypeVar("_T")
_log = logging.getLogger("gateway")


class CountSender:
    """Sends the counts of a worker. Made when its gateway exists."""

    def __init__(self, gateway: Gateway, channel: Channel) -> None:
        self._gateway = gateway
        self._channel = channel
        gateway.stats.before_drop = lambda: self._send(0, is_last=True)

    def send_regularly(self) -> None:
        """Send them, unless the supervisor is behind with reading."""
        if self._channel.held_bytes < _MAX_HELD_BYTES:
            self._send(0)

    def respond(self, scrape: int) -> None:
        """Send them for a scrape."""
        self._send(scrape)

    def _send(self, scrape: int, *, is_last: bool = False) -> None:
        self._gateway.refresh_stats()
        content = _HEAD.pack(scrape, is_last) + pack(take(self._gateway.stats))
        self._channel.send_pickled(Kind.SNAPSHOT, content)


class WorkerCounts:
    """The counts of all workers, in the supervisor.

    `receive` and `retire` are to be called for each SNAPSHOT and each end of a worker; `close` it after use.
    """

    def __init__(self, own: Stats) -> None:
        """`own` are the supervisor's: the routes of the config in force, and the numbers of the gateway."""
        self._own = own
        #: Not read yet.
        self._latest: dict[WorkerProcess, bytes] = {}
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
        scrape, is_last = _HEAD.unpack_from(content)
        self._latest[worker] = content
        if is_last:
            self._read_latest()
        answer = self._asked.get((scrape, worker))
        if answer is not None and not answer.done():
            answer.set_result(None)

    def retire(self, worker: WorkerProcess) -> None:
        """Keep the counts of a worker that has ended."""
        self._read_latest()
        self._submit(lambda: self._totals.retire(worker))
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

    async def read(self, use: Callable[[Stats], _T]) -> _T:
        """Return what `use` makes of the counts that were sent so far; it is called in the thread."""
        self._read_latest()
        own = take(self._own)
        return await asyncio.wrap_future(self._submit(lambda: use(gateway_stats(self._totals.total(own), self._own))))

    def _read_latest(self) -> None:
        latest, self._latest = self._latest, {}
        if latest:
            self._submit(lambda: self._update(latest))

    def _update(self, latest: dict[WorkerProcess, bytes]) -> None:
        for worker, content in latest.items():
            self._totals.update(worker, unpack(content[_HEAD.size :]))

    def _submit(self, work: Callable[[], _T]) -> Future[_T]:
        future = self._thread.submit(work)
        future.add_done_callback(_report_bug)
        return future


def _report_bug(future: Future[_T]) -> None:
    exc = None if future.cancelled() else future.exception()
    if exc is not None:
        _log.error("bug in the counts of workers", exc_info=exc)

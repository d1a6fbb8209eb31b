"""The last failures of workers that cannot be asked for them: those that have ended, and those that do not respond.

A worker sends its last failures when there are new ones, at most once a second, and at its end. So one that is killed
loses those of a second at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Final

from gateway.downstream.live import RecentFailures
from gateway.observe.live import FailureRow
from gateway.workers.channel import Channel, Kind
from gateway.workers.process import WorkerProcess

#: Workers that have ended whose failures are kept: 150 KiB each at most.
ENDED_KEPT: Final = 8


class FailureSender:
    """Sends the failures of a worker."""

    def __init__(self, failures: RecentFailures, channel: Channel) -> None:
        self._failures = failures
        self._channel = channel
        self._sent_count = 0

    def send_regularly(self) -> None:
        """Send them if there are new ones."""
        if self._failures.count != self._sent_count:
            self._sent_count = self._failures.count
            self._channel.send(Kind.FAILURES, self._failures.rows())


class SentFailures:
    """The failures that workers have sent, in the supervisor.

    `receive` and `retire` are to be called for each FAILURES and each end of a worker.
    """

    def __init__(self) -> None:
        self._last: dict[WorkerProcess, list[FailureRow]] = {}
        self._ended: deque[list[FailureRow]] = deque(maxlen=ENDED_KEPT)

    def receive(self, worker: WorkerProcess, rows: list[FailureRow]) -> None:
        """Take in the last failures of a worker."""
        self._last[worker] = rows

    def retire(self, worker: WorkerProcess) -> None:
        """Keep the failures of a worker that has ended."""
        rows = self._last.pop(worker, None)
        if rows:
            self._ended.append(rows)

    def rows(self, asked: Collection[FailureRow]) -> list[FailureRow]:
        """Return the failures that workers were asked for, and those of workers that have given none."""
        shown = {row["worker"] for row in asked}
        silent = [rows for worker, rows in self._last.items() if worker.pid not in shown]
        return [*asked, *(row for rows in (*silent, *self._ended) for row in rows)]

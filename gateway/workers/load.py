"""How much each worker has to do: numbers in memory that all processes share.

Each worker writes its own row and reads the others', at every connection, so a message would be too slow; a lock is not
needed, since a value that is a moment old only sends a connection to the second best worker. The supervisor marks which
rows count, and sees in them that a worker's event loop runs.

    load = open connections + bytes per second / 16 MiB

Connections count from the moment of accept: in a burst no bytes flow yet. A busy transfer weighs as much as dozens of
idle connections.
"""

from __future__ import annotations

import mmap
import time
from typing import Final

#: A worker and its replacement have a row each for a while.
MAX_ROWS: Final = 1024
_BYTES_PER_CONNECTION: Final = 16 * 2**20
#: A worker whose loop has not run for this long takes no connection soon: the others do not wait for it.
_STALE_SECONDS: Final = 2.5
#: Of a row: doubles.
_IS_READY, _CONNECTIONS, _BYTES_PER_SECOND, _BEAT, _TRANSFERS = range(5)
#: A cache line, so that no two processes write to the same one.
_WIDTH: Final = 8


class LoadTable:
    """The rows of all workers. Make it before any process is forked."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, MAX_ROWS * _WIDTH * 8)
        self.numbers = memoryview(self._memory).cast("d")
        self._free = list(range(MAX_ROWS - 1, 0, -1))

    def take_row(self) -> int:
        """Return the number of a row that no worker has; `give_back` it after the worker's end."""
        row = self._free.pop()
        self._clear(row)
        # The first row is no worker's: it has the number of rows to look at.
        self.numbers[0] = max(self.numbers[0], row + 1)
        return row

    def give_back(self, row: int) -> None:
        """Clear the row of a worker that has ended."""
        self._clear(row)
        self._free.append(row)
        # The lowest first, so that there are few to look at.
        self._free.sort(reverse=True)

    def set_ready(self, row: int, *, is_ready: bool) -> None:
        """Record whether a worker accepts connections: only then is it compared with others."""
        self.numbers[row * _WIDTH + _IS_READY] = float(is_ready)

    def beat(self, row: int) -> float:
        """Return the time of the last `LoadRow.tick` of a worker, 0 if there was none."""
        return self.numbers[row * _WIDTH + _BEAT]

    def transfers(self, row: int) -> int:
        """Return how many transfers a worker has in flight."""
        return int(self.numbers[row * _WIDTH + _TRANSFERS])

    def connections(self, row: int) -> int:
        """Return how many connections a worker has."""
        return int(self.numbers[row * _WIDTH + _CONNECTIONS])

    def _clear(self, row: int) -> None:
        for index in range(row * _WIDTH, (row + 1) * _WIDTH):
            self.numbers[index] = 0.0


class LoadRow:
    """The row of this worker. It is the AcceptShare of its acceptor."""

    def __init__(self, table: LoadTable, row: int) -> None:
        self._numbers = table.numbers
        self._row = row
        self._start = row * _WIDTH
        self._moved_bytes = 0

    def total(self) -> int:
        """Return the connections of all workers."""
        numbers = self._numbers
        return int(sum(numbers[row * _WIDTH + _CONNECTIONS] for row in range(1, int(numbers[0]))))

    def reserve(self, limit: int) -> bool:
        """Count a connection that is accepted next, unless `limit` are open; return whether it is counted.

        It is counted first, then checked: of two workers that take the last place at the same time none or one gets it.
        """
        self.count(1)
        if self.total() > limit:
            self.count(-1)
            return False
        return True

    def has_more(self) -> bool:
        """Return whether another worker has less to do than this one."""
        numbers, own = self._numbers, self._load(self._row)
        fresh = time.monotonic() - _STALE_SECONDS
        return any(
            numbers[row * _WIDTH + _IS_READY] and self._load(row) < own and numbers[row * _WIDTH + _BEAT] > fresh
            for row in range(1, int(numbers[0]))
            if row != self._row
        )

    def count(self, change: int) -> None:
        """Count connections that were accepted, or that were lost if it is negative."""
        numbers, start = self._numbers, self._start
        before = numbers[start + _CONNECTIONS]
        numbers[start + _CONNECTIONS] = before + change
        if change < 0:
            # Its bytes do not come any more. Those of the last second would keep clients away for another.
            numbers[start + _BYTES_PER_SECOND] *= max(0.0, before + change) / max(1.0, before)

    def tick(self, *, connections: int, transfers: int, moved_bytes: int) -> None:
        """Record what this worker has to do; once a second. `moved_bytes` is the total of all transfers so far."""
        numbers, start, now = self._numbers, self._start, time.monotonic()
        seconds = now - numbers[start + _BEAT]
        numbers[start + _CONNECTIONS] = connections
        numbers[start + _TRANSFERS] = transfers
        # A route that a reload removed takes its bytes along; transfers that have ended move no more.
        rate = max(0, moved_bytes - self._moved_bytes) / seconds
        numbers[start + _BYTES_PER_SECOND] = rate if transfers else 0.0
        numbers[start + _BEAT] = now
        self._moved_bytes = moved_bytes

    def _load(self, row: int) -> float:
        start = row * _WIDTH
        return self._numbers[start + _CONNECTIONS] + self._numbers[start + _BYTES_PER_SECOND] / _BYTES_PER_CONNECTION

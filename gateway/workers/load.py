"""How much each worker has to do: numbers in memory that all processes share.

Each worker writes its own row and reads the others', at every connection, so a message would be too slow; a lock is not
needed, since a value that is a moment old only sends a connection to the second best worker. The supervisor marks which
rows count, and sees in them that a worker's event loop runs.

    load = open connections + bytes per second / 16 MiB

Connections count from the moment of accept: in a burst no bytes flow yet. A busy transfer weighs as much as dozens of
idle connections. A place that is reserved for the next connection (`max_connections`) is no load before the accept: if
it were, a worker that loses its core in between would seem to have more than it has, and the others would take too
many.

A worker takes a connection if no other has at least 2 less to do; otherwise it leaves the connection to that one. So
two workers take 5 and 3 of a burst of 8 at most, 4 workers 3 and 1. With a difference of 1 they would take turns one by
one, and each turn is a wake-up: clients that open a connection for each request were served four times slower. What a
connection may wait for:

    the worker with less to do        is waited for
    --------------------------------  ------------------------------------------------------------
    is awake                          as long as it has less: it accepts as fast as it can
    is late: stuck, or without a core  50 ms, then not again within a second unless it is awake
    does not accept connections       not at all: it drains, or has no descriptor or slot left
    has missed two beats              not at all
"""

from __future__ import annotations

import mmap
import time
from typing import Final

#: A worker and its replacement have a row each for a while.
MAX_ROWS: Final = 1024
_BYTES_PER_CONNECTION: Final = 16 * 2**20
#: How much more than another worker one may have before it takes a connection.
_MARGIN: Final = 1.0
#: A worker that is not awake for this long is late. Two that compete for a core wait less for it, mostly.
LATE_SECONDS: Final = 0.05
#: A worker whose loop has not run for this long takes no connection soon: the others do not wait for it.
_STALE_SECONDS: Final = 2.5
#: Of a row: doubles. Ready is written by the supervisor, the others by the worker.
_IS_READY, _IS_ACCEPTING, _CONNECTIONS, _BYTES_PER_SECOND, _BEAT, _TRANSFERS, _AWAKE, _RESERVED = range(8)
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
        #: When workers were awake that are late, by their rows.
        self._late: dict[int, float] = {}

    def total(self) -> int:
        """Return the connections of all workers, with those that they are about to accept."""
        numbers = self._numbers
        starts = range(_WIDTH, int(numbers[0]) * _WIDTH, _WIDTH)
        return int(sum(numbers[start + _CONNECTIONS] + numbers[start + _RESERVED] for start in starts))

    def reserve(self, limit: int) -> bool:
        """Reserve a place for the connection that is accepted next, unless `limit` are taken; return whether it is.

        It is reserved first, then checked: of two workers that take the last place at a time none or one gets it.
        """
        self._numbers[self._start + _RESERVED] = 1.0
        has_place = self.total() <= limit
        if not has_place:
            self._numbers[self._start + _RESERVED] = 0.0
        return has_place

    def end_reservation(self, *, is_accepted: bool) -> None:
        """Count the connection if it was accepted; its place is not reserved any more."""
        # In this order: at no time the place is neither counted nor reserved.
        if is_accepted:
            self.count(1)
        self._numbers[self._start + _RESERVED] = 0.0

    def may_accept(self, left_seconds: float) -> bool:
        """Return whether this worker takes the next connection, which was left to others for this long already."""
        numbers, now = self._numbers, time.monotonic()
        numbers[self._start + _AWAKE] = now
        highest = self._load(self._row) - _MARGIN
        return highest <= 0 or not any(
            self._load(row) < highest and self._is_expected(row, now, left_seconds) for row in range(1, int(numbers[0]))
        )

    def _is_expected(self, row: int, now: float, left_seconds: float) -> bool:
        """Return whether another worker accepts connections, and is not late."""
        numbers, start = self._numbers, row * _WIDTH
        is_accepting = numbers[start + _IS_READY] and numbers[start + _IS_ACCEPTING]
        if not is_accepting or numbers[start + _BEAT] <= now - _STALE_SECONDS:
            return False
        awake = numbers[start + _AWAKE]
        if now - max(awake, now - left_seconds) >= LATE_SECONDS:
            self._late[row] = awake
        return self._late.get(row) != awake

    def set_accepting(self, *, is_accepting: bool) -> None:
        """Record whether this worker accepts connections now."""
        self._numbers[self._start + _IS_ACCEPTING] = float(is_accepting)

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
        self._late.clear()

    def _load(self, row: int) -> float:
        start = row * _WIDTH
        return self._numbers[start + _CONNECTIONS] + self._numbers[start + _BYTES_PER_SECOND] / _BYTES_PER_CONNECTION

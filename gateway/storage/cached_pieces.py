"""Pieces of files that were found in memory, remembered so that the next look at them is a cheap one.

    pieces = CachedPieces()          of one storage
    file = pieces.of(status)         of one opened file, by any thread; the other calls by the thread of the event loop
    file.add(first, last)            every page of these pieces was found in memory
    file.count_known(first, last)    how many of these pieces, from the first on, were found so shortly before
    file.forget()                    a page of the file was missing: what was known of the others may be no longer true

A piece is forgotten 30 to 60 s after the last look that found it. A file that is sent less often saves next to nothing
by being remembered: mincore costs 13 to 25 ms per GB.

Per file a number with one bit for each piece: 8 KiB for a file of 256 GiB. One storage remembers at most 64 files and
256 GiB of each (1 MiB of memory in all); of more files it forgets the one added first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

#: Looks are rounded to whole pieces. Larger ones make a look for a small range cost more.
PIECE_BYTES: Final = 4 * 1024 * 1024
#: Pieces are forgotten after one to two of these.
_PERIOD_SECONDS: Final = 30.0
_MAX_FILES: Final = 64
_MAX_PIECES: Final = 2**16

#: Device, inode, size and time of the last change: a file that takes the number of a removed one is another.
_FileKey = tuple[int, int, int, int]


class CachedPieces:
    """The pieces of all files of one storage."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: The number of this period, and what was found in it and in the one before: a bit per piece.
        self._period = 0
        self._found: dict[_FileKey, int] = {}
        self._found_before: dict[_FileKey, int] = {}

    def of(self, status: os.stat_result) -> FilePieces:
        """Return the pieces of one opened file."""
        return FilePieces(self, (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns))

    def _bits(self, key: _FileKey) -> int:
        self._begin_period()
        return self._found.get(key, 0) | self._found_before.get(key, 0)

    def _add(self, key: _FileKey, bits: int) -> None:
        self._begin_period()
        found = self._found
        if key not in found and len(found) >= _MAX_FILES:
            del found[next(iter(found))]
        found[key] = found.get(key, 0) | bits

    def _forget(self, key: _FileKey) -> None:
        self._found.pop(key, None)
        self._found_before.pop(key, None)

    def _begin_period(self) -> None:
        """Forget what was found before the last period, if a new one has begun."""
        period = int(self._clock() // _PERIOD_SECONDS)
        if period != self._period:
            self._found_before = self._found if period == self._period + 1 else {}
            self._found = {}
            self._period = period


class FilePieces:
    """The pieces of one opened file, by their numbers. Ranges are from `first` up to and without `last`."""

    def __init__(self, pieces: CachedPieces, key: _FileKey) -> None:
        self._pieces = pieces
        self._key = key

    def count_known(self, first: int, last: int) -> int:
        """Return how many of these pieces, from the first on, were found in memory shortly before."""
        bits = self._pieces._bits(self._key) >> first
        # The lowest bit that is not set.
        return min((~bits & (bits + 1)).bit_length() - 1, last - first)

    def add(self, first: int, last: int) -> None:
        """Remember that every page of these pieces was found in memory."""
        last = min(last, _MAX_PIECES)
        if first < last:
            self._pieces._add(self._key, ((1 << last - first) - 1) << first)

    def forget(self) -> None:
        """Forget all pieces of the file."""
        self._pieces._forget(self._key)

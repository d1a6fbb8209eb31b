"""Room for the next chunks of a chunked body, where they go on being as long as the last ones.

Most senders write chunks of one size, in large bodies as long as a buffer of theirs. What is received into this room
has its data joined already: a copy less, which was a sixth of the CPU time of a chunked upload. Each line that comes is
compared with the one that was foreseen, which was decoded before; from the first other one on the decoder decodes.

A BytesIO returns what was written to its buffer as bytes without a copy. Rejected: a bytearray, which every reader of
chunks would have to accept in place of bytes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

#: Chunks from this size on are foreseen: 64 lines in a receive of 1 MiB. Shorter ones are cheaper to copy.
MIN_FORESEEN_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Taken:
    """What was received."""

    data: bytes
    #: Bytes of the last chunk's data that are still to come.
    remaining: int
    #: What follows the data and is not decoded: it begins where a line begins.
    rest: bytes


class ForeseenChunks:
    """Receive into `buffers`, in this order, then call `take`, once.

    `line` is the line break after a chunk's data and the line before the next, `size` the bytes of data that follow it.
    `remaining` bytes of data come first; or, where that is 0, the rest of a line of which `begun` bytes were received.
    There is room for `most` bytes of data, which is more than `remaining`.
    """

    def __init__(self, line: bytes, size: int, most: int, *, remaining: int, begun: int) -> None:
        self._line = line
        self._size = size
        self._remaining = remaining
        self._begun = begun
        self._data = io.BytesIO()
        self._data.seek(most - 1)
        self._data.write(b"\0")
        with self._data.getbuffer() as room:
            self._views = [room[:remaining]]
            self._lines: list[bytearray] = []
            at = remaining
            while at < most:
                self._lines.append(bytearray(len(line) - begun))
                self._views.append(room[at : at + size])
                at, begun = at + size, 0
        #: Data and lines by turns.
        self.buffers: list[memoryview | bytearray] = [self._views[0]]
        for pair in zip(self._lines, self._views[1:], strict=True):
            self.buffers += pair

    def take(self, count: int) -> Taken:
        """Return what the first `count` bytes received are, at least one."""
        taken = min(len(self._views[0]), count)
        length, remaining, left, rest = taken, self._remaining - taken, count - taken, b""
        for index, (line, view) in enumerate(zip(self._lines, self._views[1:], strict=True)):
            if not left:
                break
            begun, expected = self._line[: -len(line)], self._line[-len(line) :]
            if left < len(line) or line != expected:
                # From the end of the data on, where a line begins.
                received = line if left <= len(line) else b"".join(self.buffers[2 * index + 1 :])
                rest = begun + received[:left]
                break
            left -= len(line)
            taken = min(len(view), left)
            length, remaining, left = length + taken, self._size - taken, left - taken
        # Data cannot be returned while there are views of it.
        for each in self._views:
            each.release()
        self._data.truncate(length)
        return Taken(self._data.getvalue(), remaining, rest)

"""Which bytes of a file are in memory, so that sending them waits for no disk.

mincore looks at exactly the pages that are sent, for a twelfth of what sendfile costs. For a file that this process
neither owns nor may write, the kernel answers that everything is in memory, so as not to disclose what others read
(mincore(2)). Such a file is read with RWF_NOWAIT in place of it, which costs a copy. File systems without RWF_NOWAIT
have no answer then.

Rejected: RWF_NOWAIT for single bytes, because it says nothing of the bytes between them; cachestat(2), because it
counts pages that are still being read; a mapping for each look, a tenth more, and on the event loop; a mapping with its
pages (MADV_POPULATE_READ), which are then looked at in no time, but cost four times as much to bring in; sendfile in a
thread, because a hop for 16 MiB costs about as much as to look at them.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from typing import Any, Final

_PAGE: Final = mmap.PAGESIZE
_FAILED: Final = ctypes.c_void_p(-1).value
#: Read at once to see whether it is in memory: fits the processor's cache.
_PROBE_BYTES: Final = 256 * 1024


class PageCache:
    """Answers for the first `size` bytes of an open file; for none of them with mincore if `size` is 0.

    Made and closed by a thread: the check of the file's owner, mmap and munmap may block.
    """

    def __init__(self, descriptor: int, owner: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
        may_ask = _LIBC is not None and (
            owner == os.geteuid() or os.access(f"/proc/self/fd/{descriptor}", os.W_OK, effective_ids=True)
        )
        #: Of a mapping of the whole file, 0 if there is none. It is never touched: it takes no memory, and a file that
        #: becomes shorter raises no signal.
        self._address: int = _map(descriptor, size) if may_ask and size else 0
        self._has_nowait = hasattr(os, "RWF_NOWAIT")

    @property
    def can_tell(self) -> bool:
        """Whether there is any answer for this file."""
        return bool(self._address) or self._has_nowait

    def count_cached(self, at: int, size: int) -> int:
        """Return how many of the `size` bytes from `at` are in memory, up to the first that is not. Never blocks.

        Not to be called after `close`.
        """
        if self._address:
            return self._count_resident(at, min(size, self._size - at))
        return self._read_nowait(at, size) if self._has_nowait else 0

    def close(self) -> None:
        """Remove the mapping; the descriptor stays open. Blocks."""
        address, self._address = self._address, 0
        if address:
            _LIBC.munmap(address, self._size)

    def _count_resident(self, at: int, size: int) -> int:
        if size <= 0:
            return 0
        skipped = at % _PAGE
        length = skipped + size
        pages = ctypes.create_string_buffer(-(-length // _PAGE))
        if _LIBC.mincore(self._address + at - skipped, length, pages):
            return 0
        # Only the lowest bit has a meaning.
        missing = pages.raw.translate(_LOWEST_BIT).find(b"\0")
        return size if missing < 0 else max(0, missing * _PAGE - skipped)

    def _read_nowait(self, at: int, size: int) -> int:
        count = 0
        while count < size:
            try:
                found = os.preadv(self._descriptor, (_PROBE,), at + count, os.RWF_NOWAIT)
            except OSError as exc:
                self._has_nowait = exc.errno != errno.EOPNOTSUPP
                break
            count += found
            if found < _PROBE_BYTES:
                break
        return min(count, size)


def _map(descriptor: int, size: int) -> int:
    """Map a file; return the address, 0 where that fails."""
    address: int = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    return 0 if address == _FAILED else address


def _load_libc() -> Any:
    """Return the C library with these calls declared; None where mincore means something else (macOS)."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc


_LIBC: Final = _load_libc()
_LOWEST_BIT: Final = bytes(value & 1 for value in range(256))
_PROBE: Final = bytearray(_PROBE_BYTES)

"""Which bytes of a file are in memory, so that sending them waits for no disk.

mincore looks at exactly the pages that are sent, for a twelfth of what sendfile costs. For a file that this process
neither owns nor may write, the kernel answers that everything is in memory, so as not to disclose what others read
(mincore(2)). Such a file is read with RWF_NOWAIT in place of it, which costs a copy; so is any file where a filter of
system calls refuses mincore. File systems without RWF_NOWAIT have no answer then.

Pieces in which mincore found every page are remembered (`gateway.storage.cached_pieces`). At the next look cachestat(2)
counts their pages, at half of what mincore costs where the file system keeps single pages, at a fiftieth where it keeps
large folios (xfs; ext4 since Linux 6.16). If none is missing, none was dropped since, short of one that was dropped and
is being read again: cachestat counts it, and sendfile would wait for it. For that, the following has to come together
within a minute of the last look that found the piece: the kernel drops pages of it; another process, or this one for a
client over TLS, begins to read them again (for other clients it reads only what a look found missing); and this one
looks before they are read. Two things bound it:

- A page of each piece, its first, is looked at with RWF_NOWAIT as well, which sees that a page is being read. Another
  worker has the kernel read 4 MiB ahead, which have such a page; while a disk does not answer at all, it stays unread.
- Where a page is missing, the whole file is forgotten: the kernel seldom drops a few pages of a file only.

What is left is a wait until the reads of others that are under way in the bytes of one call (4 MiB) are done; one that
fails is repeated. On overlayfs, on kernels before 6.5 and for files for which the kernel refuses to count, mincore
looks at every page each time.

Rejected: RWF_NOWAIT for single bytes alone, because it says nothing of the bytes between them; cachestat alone, because
it counts pages that are still being read; a mapping for each look, a tenth more, and on the event loop; a mapping with
its pages (MADV_POPULATE_READ), which are then looked at in no time, but cost four times as much to bring in and count
as memory of this process; sendfile in a thread, because a hop for 16 MiB costs about as much as to look at them.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from typing import Any, Final

from gateway.storage.cached_pieces import PIECE_BYTES, FilePieces

_PAGE: Final = mmap.PAGESIZE
_FAILED: Final = ctypes.c_void_p(-1).value
#: Read at once to see whether it is in memory: fits the processor's cache.
_PROBE_BYTES: Final = 256 * 1024


class PageCache:
    """Answers for the first `size` bytes of an open file; for none of them with mincore if `size` is 0.

    Made and closed by a thread: the check of the file's owner, mmap and munmap may block. With `pieces`, what mincore
    found is remembered there; without, it is asked for every page each time.
    """

    def __init__(self, descriptor: int, owner: int, size: int, pieces: FilePieces | None = None) -> None:
        self._descriptor = descriptor
        self._size = size
        may_ask = _LIBC is not None and (
            owner == os.geteuid() or os.access(f"/proc/self/fd/{descriptor}", os.W_OK, effective_ids=True)
        )
        #: Of a mapping of the whole file, 0 if there is none. It is never touched: it takes no memory, and a file that
        #: becomes shorter raises no signal.
        self._address: int = _map(descriptor, size) if may_ask and size else 0
        self._has_nowait = hasattr(os, "RWF_NOWAIT")
        #: None also where what is remembered cannot be checked.
        self._pieces = pieces if _CACHESTAT and self._has_nowait else None

    @property
    def can_tell(self) -> bool:
        """Whether there is any answer for this file."""
        return bool(self._address) or self._has_nowait

    def count_cached(self, at: int, size: int) -> int:
        """Return how many of the `size` bytes from `at` are in memory, up to the first that is not. Never blocks.

        Not to be called after `close`.
        """
        if self._address:
            end = min(at + size, self._size)
            return self._count_resident(at, end) if at < end else 0
        return self._read_nowait(at, size) if self._has_nowait else 0

    def close(self) -> None:
        """Remove the mapping; the descriptor stays open. Blocks."""
        address, self._address = self._address, 0
        if address:
            _LIBC.munmap(address, self._size)

    def _count_resident(self, at: int, end: int) -> int:
        begin, until = at - at % _PAGE, end
        first, last = at // PIECE_BYTES, -(-end // PIECE_BYTES)
        pieces = self._pieces
        if pieces is not None:
            # Whole pieces, so that each is looked at by mincore once, wherever looks begin and end.
            begin, until = (first + self._count_kept(pieces, first, last)) * PIECE_BYTES, last * PIECE_BYTES
        pages = self._ask_mincore(begin, min(until, self._size))
        if pieces is not None:
            if 0 in pages:
                pieces.forget()
            else:
                pieces.add(first, last)
        missing = pages.find(b"\0", max(0, at - begin) // _PAGE)
        return end - at if missing < 0 else max(0, min(begin + missing * _PAGE, end) - at)

    def _count_kept(self, pieces: FilePieces, first: int, last: int) -> int:
        """Return how many of these pieces, from the first on, are remembered and still in memory."""
        known = pieces.count_known(first, last)
        if not known:
            return 0
        begin, end = first * PIECE_BYTES, min((first + known) * PIECE_BYTES, self._size)
        count = _count_pages(self._descriptor, begin, end - begin)
        if count == -(-(end - begin) // _PAGE) and all(map(self._is_read, range(begin, end, PIECE_BYTES))):
            return known
        pieces.forget()
        if count < 0:
            self._pieces = None
        return 0

    def _is_read(self, at: int) -> bool:
        """Return whether the page of this byte is in memory, and not just being read."""
        try:
            return os.preadv(self._descriptor, (_BYTE,), at, os.RWF_NOWAIT) == 1
        except OSError:
            return False

    def _ask_mincore(self, at: int, end: int) -> bytes:
        """Return a byte for each page from `at`, which begins one: 1 if it is in memory. All are 0 where that fails."""
        if at >= end:
            return b""
        pages = ctypes.create_string_buffer(-(-(end - at) // _PAGE))
        if _LIBC.mincore(self._address + at, end - at, pages):
            return bytes(len(pages))
        # Only the lowest bit has a meaning.
        return pages.raw.translate(_LOWEST_BIT)

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


class _Range(ctypes.Structure):
    """struct cachestat_range."""

    _fields_ = (("at", ctypes.c_uint64), ("size", ctypes.c_uint64))


class _Statistics(ctypes.Structure):
    """struct cachestat, in pages."""

    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


def _count_pages(descriptor: int, at: int, size: int) -> int:
    """Return how many pages of these bytes are in memory or being read, -1 where the kernel does not say."""
    statistics = _Statistics()
    failed = _LIBC.syscall(_CACHESTAT, descriptor, ctypes.byref(_Range(at, size)), ctypes.byref(statistics), 0)
    return -1 if failed else statistics.cached


def _map(descriptor: int, size: int) -> int:
    """Map a file; return the address, 0 where that fails, or a filter of system calls refuses mincore."""
    address: int = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        return 0
    if _LIBC.mincore(address, 1, ctypes.create_string_buffer(1)):
        _LIBC.munmap(address, size)
        return 0
    return address


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
    libc.syscall.restype = ctypes.c_long
    libc.syscall.argtypes = (ctypes.c_long, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
    return libc


_LIBC: Final = _load_libc()
#: Its number on these machines (asm/unistd.h); 0 on others.
_CACHESTAT: Final = (
    451 if _LIBC is not None and os.uname().machine in {"x86_64", "aarch64", "riscv64", "ppc64le", "s390x"} else 0
)
_LOWEST_BIT: Final = bytes(value & 1 for value in range(256))
_PROBE: Final = bytearray(_PROBE_BYTES)
_BYTE: Final = bytearray(1)

"""Memory settings of the process: during its imports, and once it has started. `garbage` goes on from there.

Chunks of up to 2 MiB are allocated and freed thousands of times a second. glibc returns the top of its heap to the
kernel when two adjacent chunks are free, and the next allocation then faults the same pages in again, zeroed, one
fault per 4 KiB: up to 66,000 faults per GB, a quarter of the CPU time of a chunked upload. Keeping 16 MiB of freed
memory in the process avoids this.
"""

from __future__ import annotations

import ctypes
import gc
import io
from collections.abc import Callable
from typing import Final

#: The interpreter's own.
SERVING_THRESHOLDS: Final = (700, 10, 10)
#: New objects between two collections during imports, which look at no others.
_IMPORT_OBJECTS: Final = 20_000
_NEVER: Final = 100_000
# <malloc.h> of glibc.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
#: Twice what the chunks of all transfers may hold together.
_KEPT_BYTES: Final = 16 * 2**20
#: Larger allocations, which no chunk needs, use mmap. Setting it also disables glibc's dynamic threshold.
_MAPPED_BYTES: Final = 4 * 2**20


def collect_rarely() -> None:
    """Collect garbage rarely until `tune_memory`: for imports, which leave little. Looking for it took 50 ms."""
    gc.set_threshold(_IMPORT_OBJECTS, _NEVER, _NEVER)


def tune_memory() -> None:
    """Exclude the objects that exist now from garbage collection, and keep freed chunks in the process."""
    # A full collection looks at all modules and the config, which takes 15 ms on the event loop, and finds nothing that
    # those of `collect_rarely` have left: what is excluded is never looked at again.
    gc.collect(0)
    gc.freeze()
    gc.set_threshold(*SERVING_THRESHOLDS)
    libc = ctypes.CDLL(None)
    # musl and other C libraries have neither.
    if hasattr(libc, "malloc_trim"):
        # What the start has freed.
        libc.malloc_trim(0)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def make_room(size: int) -> io.BytesIO:
    """Return a buffer of `size` bytes with any content: receive into it, then truncate it to what was received.

    `bytes(size)` and a BytesIO write zeros first, which took 9 % of the CPU time of a chunked upload.
    """
    # No one else has a reference to these bytes: otherwise BytesIO would copy them before it changes them.
    return io.BytesIO(_make_bytes(None, size))


def _load_make_bytes() -> Callable[[None, int], bytes]:
    make = getattr(ctypes.PyDLL(None), "PyBytes_FromStringAndSize", None)
    if make is None:
        # Not CPython.
        return lambda _, size: bytes(size)
    make.argtypes, make.restype = (ctypes.c_void_p, ctypes.c_ssize_t), ctypes.py_object
    loaded: Callable[[None, int], bytes] = make
    return loaded


_make_bytes: Final = _load_make_bytes()

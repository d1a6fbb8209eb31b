"""Memory settings of the process, applied once at the start.

Chunks of up to 1 MiB are allocated and freed thousands of times a second. glibc returns the top of its heap to the
kernel when two adjacent chunks are free, and the next allocation then faults the same pages in again, zeroed, one
fault per 4 KiB: up to 66,000 faults per GB, a quarter of the CPU time of a chunked upload. Keeping 16 MiB of freed
memory in the process avoids this.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

# <malloc.h> of glibc.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
#: Twice what the chunks of all transfers may hold together.
_KEPT_BYTES: Final = 16 * 2**20
#: Larger allocations, which no chunk needs, use mmap. Setting it also disables glibc's dynamic threshold.
_MAPPED_BYTES: Final = 4 * 2**20


def tune_memory() -> None:
    """Exclude the objects that exist now from garbage collection, and keep freed chunks in the process."""
    # Each full collection would scan all modules and the config, which takes 10 ms on the event loop.
    gc.collect()
    gc.freeze()
    # musl and other C libraries have no mallopt.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)

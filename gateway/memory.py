"""What the process says about its memory once, at the start: what stays, and what is worth giving back.

Chunks of up to a mebibyte come and go thousands of times a second. glibc gives the top of its heap back to the kernel
whenever two of them are free at once, and the kernel then hands out the same pages again, zeroed, one fault for each 4
KiB: up to 66,000 faults a gigabyte, a quarter of what a chunked upload cost. Keeping a few mebibytes ends that.
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
#: Blocks larger than any chunk come from the kernel and go back to it. Setting it also ends glibc's own guessing.
_MAPPED_BYTES: Final = 4 * 2**20


def settle() -> None:
    """Keep what is here now out of every collection, and freed chunks in the process."""
    # The collector would walk through modules and config each time, 10 ms of everybody's latency.
    gc.collect()
    gc.freeze()
    # musl and others have no such call, and no such habit.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)

"""Memory settings of the process: during its imports, once it has started, and while it serves.

Chunks of up to 1 MiB are allocated and freed thousands of times a second. glibc returns the top of its heap to the
kernel when two adjacent chunks are free, and the next allocation then faults the same pages in again, zeroed, one
fault per 4 KiB: up to 66,000 faults per GB, a quarter of the CPU time of a chunked upload. Keeping 16 MiB of freed
memory in the process avoids this.

A full garbage collection looks at every object and holds the event loop meanwhile: 165,000 objects and 75 ms with 1,000
transfers. The gateway leaves hardly any reference cycles, and those that it leaves die young, so a process that serves
looks through all objects only while they are few. Rejected: to collect in a thread (it keeps the interpreter's lock
all the time), and never to collect (plug-ins may leave cycles).
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable
from typing import Final

#: The interpreter's own.
_SERVING_THRESHOLDS: Final = (700, 10, 10)
#: New objects between two collections during imports, which look at no others.
_IMPORT_OBJECTS: Final = 20_000
_NEVER: Final = 100_000
#: Between two looks whether garbage can be collected; after this many in vain it is collected all the same.
_LOOK_SECONDS: Final = 10.0
_MAX_LOOKS: Final = 60
#: Connections of a calm gateway: with a transfer on each of them a full collection takes 8 ms.
_CALM_CONNECTIONS: Final = 100
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
    gc.set_threshold(*_SERVING_THRESHOLDS)
    libc = ctypes.CDLL(None)
    # musl and other C libraries have neither.
    if hasattr(libc, "malloc_trim"):
        # What the start has freed.
        libc.malloc_trim(0)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


async def collect_when_calm(connection_count: Callable[[], int]) -> None:
    """Collect garbage among all objects only while there are few connections, or every ten minutes; until cancelled."""
    young, middle, full = _SERVING_THRESHOLDS
    gc.set_threshold(young, middle, _NEVER)
    looks = 0
    try:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if gc.get_count()[2] < full:
                # As without this, when there were too few collections of younger objects.
                continue
            looks += 1
            if connection_count() <= _CALM_CONNECTIONS or looks >= _MAX_LOOKS:
                gc.collect()
                looks = 0
    finally:
        gc.set_threshold(young, middle, full)

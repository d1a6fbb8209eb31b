"""Garbage collection while the gateway serves: through all objects only while they are few.

A full collection looks at every object and holds the event loop meanwhile: 165,000 objects and 75 ms with 1,000
transfers. The gateway leaves hardly any reference cycles, and those that it leaves die young, so they are looked for
among the young as usual. Rejected: to collect in a thread (it keeps the interpreter's lock all the time), and never to
collect (plug-ins may leave cycles).
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Final

from gateway.memory import SERVING_THRESHOLDS

_NEVER: Final = 100_000
#: Between two looks whether garbage can be collected; after this many in vain it is collected all the same.
_LOOK_SECONDS: Final = 10.0
_MAX_LOOKS: Final = 60
#: Connections of a calm gateway: with a transfer on each of them a full collection takes 8 ms.
_CALM_CONNECTIONS: Final = 100


async def collect_when_calm(connection_count: Callable[[], int]) -> None:
    """Collect garbage among all objects only while there are few connections, or every ten minutes; until cancelled."""
    young, middle, full = SERVING_THRESHOLDS
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

"""Threads for what may block on a disk. Not asyncio's default ones: a stuck disk must not stop name lookups."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Final, TypeVar

from gateway.errors import Fault, FaultKind

_Result = TypeVar("_Result")
_THREADS: Final = 8
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ESTALE, errno.EIO})


class DiskThreads:
    """Runs blocking calls, and turns their OSError into a Fault."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "disk")

    @property
    def threads(self) -> Executor:
        """The threads, for work of others on what goes to a disk or a store."""
        return self._threads

    def start(self, call: Callable[[], _Result]) -> Future[_Result]:
        """Begin a call, to be awaited with `wait`."""
        return self._threads.submit(call)

    async def wait(self, started: Future[_Result]) -> _Result:
        """Return the result of a call begun before. Raises Fault. Cancelling leaves it running."""
        try:
            return await self.wait_raw(started)
        except OSError as exc:
            raise disk_fault(exc) from exc

    async def wait_raw(self, started: Future[_Result]) -> _Result:
        """Return the result of a call begun before, its OSError as it is. Cancelling leaves it running."""
        return await asyncio.shield(asyncio.wrap_future(started))

    async def finish(self, started: Future[_Result]) -> _Result:
        """Return the result of a call that works on a descriptor of ours, its OSError as it is.

        Cancelling waits for a call under way and drops one that has not begun: on return nobody works on the
        descriptor any more, so that it can be closed, and its number given to another connection.
        """
        try:
            return await self.wait_raw(started)
        except asyncio.CancelledError:
            if not started.cancel():
                while not started.done():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.wait([asyncio.wrap_future(started)])
            raise

    async def run(self, call: Callable[[], _Result]) -> _Result:
        """Run a call and return its result. Raises Fault. Cancelling leaves it running."""
        return await self.wait(self.start(call))

    def close(self) -> None:
        """Wait for calls still running, so that what they clean up is cleaned up."""
        self._threads.shutdown(wait=True)


def disk_fault(exc: OSError) -> Fault:
    """Return the fault an OSError of a file means: 507 full, 503 directory gone or closed to us, 500 else.

    The text names no path: it reaches the client. The log has the exception.
    """
    if exc.errno in _FULL:
        return Fault(FaultKind.DISK_FULL, "The disk is full or over its quota: free some space, then send again.")
    if exc.errno in _GONE:
        reason = (exc.strerror or "no reason given").lower()
        return Fault(
            FaultKind.DISK_UNAVAILABLE,
            f"The route's directory cannot be used ({reason}): create it or change its mode.",
        )
    return Fault(FaultKind.DISK_FAILED, f"The disk failed ({(exc.strerror or 'no reason given').lower()}).")

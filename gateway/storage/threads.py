"""Threads for calls that may block on a disk. Not asyncio's default ones: a stuck disk must not stop name lookups."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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

    def start(self, call: Callable[[], _Result]) -> Future[_Result]:
        """Start a call; pass what this returns to `wait` or `wait_to_end`."""
        return self._threads.submit(call)

    async def wait(self, started: Future[_Result]) -> _Result:
        """Return the result of a started call. Raises Fault. Cancelling leaves the call running."""
        try:
            return await _result(started)
        except OSError as exc:
            raise disk_fault(exc) from exc

    async def wait_to_end(self, started: Future[_Result]) -> _Result:
        """Return the result of a started call that works on a descriptor of ours. Raises its OSError unchanged.

        Cancelling waits for a call that runs and drops one that has not started. So no thread uses the descriptor when
        this returns: it can be closed, and the kernel can give its number to another connection.
        """
        try:
            return await _result(started)
        except asyncio.CancelledError:
            if not started.cancel():
                while not started.done():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.wait([_awaitable(started)])
            raise

    async def run(self, call: Callable[[], _Result]) -> _Result:
        """Run a call and return its result. Raises Fault. Cancelling leaves the call running."""
        return await self.wait(self.start(call))

    def close(self) -> None:
        """Block until the calls still running are done, cleanup of uploads included."""
        self._threads.shutdown(wait=True)


def disk_fault(exc: OSError) -> Fault:
    """Return the fault for an OSError of a file: 507 disk full, 503 directory missing or no permission, else 500.

    Its text names no path, because it reaches the client; the log has the exception.
    """
    if exc.errno in _FULL:
        return Fault(FaultKind.DISK_FULL, "The disk is full or over its quota: free some space, then send again.")
    reason = (exc.strerror or "no reason given").lower()
    if exc.errno in _GONE:
        return Fault(
            FaultKind.DISK_UNAVAILABLE,
            f"The route's directory cannot be used ({reason}): create it or change its mode.",
        )
    return Fault(FaultKind.DISK_FAILED, f"The disk failed ({reason}).")


async def _result(started: Future[_Result]) -> _Result:
    return await asyncio.shield(_awaitable(started))


def _awaitable(started: Future[_Result]) -> asyncio.Future[_Result]:
    """Return a future of the loop for a call. Its exception is retrieved even if the wait for it is cancelled."""
    waiter = asyncio.wrap_future(started)
    waiter.add_done_callback(lambda future: future.cancelled() or future.exception())
    return waiter

"""Blocking calls to disks, in threads with a time limit.

Every directory has threads of its own: a file system that does not answer stops the routes that use it, and nothing
else. Where all threads of a directory are stuck, further calls fail at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from gateway.errors import Fault, FaultKind
from gateway.threads import Threads
from gateway.transfer import exhaustion_fault

_Result = TypeVar("_Result")
_MAX_THREADS: Final = 8
#: For clients whose request failed because a disk is slow.
_RETRY_SECONDS: Final = 10
#: Until a cleanup that no thread could be started for is tried again.
_CLEANUP_SECONDS: Final = 1.0
#: Limit for the wait at the exit: a call that is stuck does not keep the process.
_CLOSE_SECONDS: Final = 2.0
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ESTALE, errno.EIO})


class Disks:
    """The threads of every directory."""

    def __init__(self) -> None:
        #: A directory that no config names any more is forgotten with its last storage.
        self._threads: weakref.WeakValueDictionary[str, Threads] = weakref.WeakValueDictionary()

    def of(self, directory: str, call_seconds: float, sync_seconds: float = math.inf) -> DiskThreads:
        """Return the threads of a directory, see `without_disk` for "". The limits: see DiskThreads."""
        path = os.path.abspath(directory) if directory else ""
        threads = self._threads.get(path)
        if threads is None:
            threads = self._threads[path] = Threads("disk", _MAX_THREADS)
        return DiskThreads(threads, call_seconds, sync_seconds)

    def without_disk(self) -> DiskThreads:
        """Return the threads for calls that use no disk, such as hashing: no disk that is stuck keeps them."""
        return self.of("", math.inf)

    def close(self) -> None:
        """Block until the calls that run are done, cleanup of uploads included, for a few seconds at most."""
        until = time.monotonic() + _CLOSE_SECONDS
        for threads in list(self._threads.values()):
            threads.shutdown(limit_seconds=max(0.0, until - time.monotonic()))


class DiskThreads:
    """Runs blocking calls, and turns their OSError into a Fault.

    The wait for a call ends with DISK_SLOW after `call_seconds`, for a call that syncs whole files after
    `sync_seconds`. A call that has begun cannot be stopped: it keeps its thread until the disk answers.
    """

    def __init__(self, threads: Threads, call_seconds: float, sync_seconds: float = math.inf) -> None:
        self._threads = threads
        self._call_seconds = call_seconds
        self._sync_seconds = sync_seconds

    def start(self, call: Callable[[], _Result], after: Future[Any] | None = None) -> Future[_Result]:
        """Start a call; pass what this returns to `wait`. Raises Fault DISK_SLOW at once if all threads are stuck.

        With `after` it begins when that one, the last that was started so, has ended; it is dropped if that one fails.
        """
        if self._threads.stuck_seconds > self._call_seconds:
            raise self._slow(self._call_seconds, "timeouts.idle")
        return self._threads.submit(call) if after is None else self._threads.submit_after(after, call)

    def drop(self, started: Future[Any]) -> None:
        """Drop a call that has not begun."""
        self._threads.cancel(started)

    async def wait(self, started: Future[_Result], limit_seconds: float | None = None) -> _Result:
        """Return the result of a started call. Raises Fault; `limit_seconds` replaces the limit of calls.

        Cancelling, and the limit, drop a call that has not begun and leave one that has running.
        """
        return await self._wait(started, limit_seconds or self._call_seconds, "timeouts.idle")

    async def wait_sync(self, started: Future[_Result]) -> _Result:
        """Return the result of a call that syncs whole files, see `wait`."""
        return await self._wait(started, self._sync_seconds, "store.sync_timeout")

    async def run(self, call: Callable[[], _Result]) -> _Result:
        """Run a call and return its result. Raises Fault. Cancelling: see `wait`."""
        return await self.wait(self.start(call))

    def clean_up(self, call: Callable[[], None], after: Sequence[Future[Any]]) -> Future[None]:
        """Start a call that is never dropped, once the calls in `after` are done. What it raises is ignored.

        What is returned is done when the call is. If no thread can be started for it, it is done at once, and the call
        is tried again every second.
        """
        cleaned: Future[None] = Future()
        loop = asyncio.get_running_loop()
        remaining = len(after)
        lock = threading.Lock()

        def begin() -> None:
            self._threads.submit(call).add_done_callback(end)

        def end(ended: Future[None]) -> None:
            _end(cleaned)
            if _was_refused(ended):
                _call_on_loop(loop, loop.call_later, _CLEANUP_SECONDS, begin)

        def count(_: Future[Any]) -> None:
            nonlocal remaining
            with lock:
                remaining -= 1
                is_last = not remaining
            if is_last:
                begin()

        for each in after:
            each.add_done_callback(count)
        if not after:
            begin()
        return cleaned

    async def _wait(self, started: Future[_Result], seconds: float, key: str) -> _Result:
        try:
            return await _result(started, seconds)
        except _Expired:
            raise self._slow(seconds, key) from None
        except OSError as exc:
            raise disk_fault(exc) from exc
        finally:
            if not started.done():
                self._threads.cancel(started)

    def _slow(self, seconds: float, key: str) -> Fault:
        return Fault(
            FaultKind.DISK_SLOW,
            f"The route's directory did not answer for {seconds:g} s: check its disk, or raise the route's {key}.",
            retry_after_seconds=_RETRY_SECONDS,
        )


def disk_fault(exc: OSError) -> Fault:
    """Return the fault for an OSError of a file: 507 disk full, 503 directory missing or no permission, else 500.

    Without a free descriptor it is not the disk's: 503.

    Its text names no path, because it reaches the client; the log has the exception.
    """
    if (exhaustion := exhaustion_fault(exc)) is not None:
        return exhaustion
    if exc.errno in _FULL:
        return Fault(FaultKind.DISK_FULL, "The disk is full or over its quota: free some space, then send again.")
    reason = (exc.strerror or "no reason given").lower()
    if exc.errno in _GONE:
        return Fault(
            FaultKind.DISK_UNAVAILABLE,
            f"The route's directory cannot be used ({reason}): create it or change its mode.",
        )
    return Fault(FaultKind.DISK_FAILED, f"The disk failed ({reason}).")


class _Expired(Exception):
    """The limit for a call has passed."""


async def _result(started: Future[_Result], seconds: float) -> _Result:
    """Return the result of a call. Raises its exception, or _Expired."""
    if started.done():
        return started.result()
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    timer = loop.call_later(seconds, _expire, waiter) if seconds < math.inf else None
    started.add_done_callback(lambda _: _call_on_loop(loop, _finish, waiter))
    try:
        await waiter
    finally:
        if timer is not None:
            timer.cancel()
    return started.result()


def _end(cleaned: Future[None]) -> None:
    if not cleaned.done() and cleaned.set_running_or_notify_cancel():
        cleaned.set_result(None)


def _was_refused(ended: Future[None]) -> bool:
    """Return whether a call did not run, for want of a thread."""
    failure = None if ended.cancelled() else ended.exception()
    return isinstance(failure, Fault) and failure.kind is FaultKind.OUT_OF_THREADS


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(_Expired())


def _call_on_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: Any) -> None:
    """Have the event loop call something, from a thread."""
    # The loop is closed: a call that was stuck at the exit has ended.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *arguments)


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)

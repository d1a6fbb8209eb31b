"""Threads for calls that block: file systems, name lookups, computations of filters.

`concurrent.futures.ThreadPoolExecutor` was rejected: it joins its threads when the interpreter exits, so that one call
on a file system that does not answer keeps the process forever; its threads never end; and a call that was cancelled
stays in the queue, with its arguments, until a thread is free.
"""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, Final, ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_IDLE_SECONDS: Final = 30.0


class Threads(Executor):
    """At most `max_count` daemon threads. They start when needed and end when idle; waiting calls run in their order.

    `submit`, `cancel` and `shutdown` may be called from any thread.
    """

    def __init__(self, name: str, max_count: int) -> None:
        self._name = name
        self._max_count = max_count
        #: None asks a thread to end.
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        #: Calls that wait or run.
        self._unfinished: dict[Future[Any], _Call] = {}
        self._running: set[_Call] = set()
        self._lock = threading.Lock()
        self._thread_count = 0
        #: Threads that no call is meant for.
        self._idle_count = 0

    def submit(
        self,
        call: Callable[_Arguments, _Result],
        /,
        *arguments: _Arguments.args,
        **options: _Arguments.kwargs,
    ) -> Future[_Result]:
        """Run a call in a thread, at once if one is free. It fails with OSError if the system allows no thread."""
        work = (lambda: call(*arguments, **options)) if arguments or options else call
        future: Future[_Result] = Future()
        self._unfinished[future] = queued = _Call(future, work)
        self._calls.put(queued)
        with self._lock:
            if self._idle_count:
                self._idle_count -= 1
            elif self._thread_count < self._max_count:
                self._start_thread(queued)
        return future

    def cancel(self, future: Future[Any]) -> bool:
        """Drop a call that has not begun; return whether it had not."""
        if not future.cancel():
            return False
        queued = self._unfinished.pop(future, None)
        if queued is not None:
            queued.work = None
        return True

    @property
    def stuck_seconds(self) -> float:
        """Seconds for which every thread has been busy with one call; 0 if a thread is free."""
        started = [call.started for call in list(self._running)]
        return time.monotonic() - max(started) if len(started) >= self._max_count else 0.0

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, limit_seconds: float = 5.0) -> None:
        """With `wait`, block until no call runs or waits, but no longer than `limit_seconds`.

        With `cancel_futures`, drop the calls that wait. Threads end when they are idle; a call may still be submitted.
        """
        until = time.monotonic() + limit_seconds
        for future in list(self._unfinished) if cancel_futures else ():
            self.cancel(future)
        # A call may start another at its end.
        while wait and (unfinished := list(self._unfinished)):
            done = threading.Event()
            unfinished[0].add_done_callback(lambda _, done=done: done.set())  # type: ignore[misc]  # a default argument
            if not done.wait(max(0.0, until - time.monotonic())):
                break
        for _ in range(self._thread_count):
            self._calls.put(None)

    def _start_thread(self, call: _Call) -> None:
        """Start a thread for a call. Where the system allows no more, the threads there are take it."""
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError as exc:
            if not self._thread_count:
                call.work = None
                self._unfinished.pop(call.future, None)
                call.future.set_exception(OSError(errno.EAGAIN, str(exc)))
        else:
            self._thread_count += 1

    def _run(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                call = None
            if call is None:
                with self._lock:
                    # A call may have come meanwhile: then this thread is not counted as idle any more.
                    if self._idle_count and self._calls.empty():
                        self._idle_count -= 1
                        self._thread_count -= 1
                        return
                continue
            call.started = time.monotonic()
            self._running.add(call)
            call.run()
            self._running.discard(call)
            self._unfinished.pop(call.future, None)
            # Before the wait for the next: it may hold a body's chunks.
            del call
            with self._lock:
                self._idle_count += 1


class _Call:
    """A call with its result."""

    __slots__ = ("future", "started", "work")

    def __init__(self, future: Future[Any], work: Callable[[], Any]) -> None:
        self.future = future
        self.work: Callable[[], Any] | None = work
        #: When a thread began it, by the monotonic clock.
        self.started = 0.0

    def run(self) -> None:
        work = self.work
        if work is None or not self.future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as exc:
            self.future.set_exception(exc)
            # The traceback refers to this frame: a reference cycle.
            del self
        else:
            self.future.set_result(result)

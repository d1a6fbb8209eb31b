"""Threads for calls that block: file systems, name lookups, computations of filters.

`concurrent.futures.ThreadPoolExecutor` was rejected: it joins its threads when the interpreter exits, so that one call
on a file system that does not answer keeps the process forever; its threads never end; and a call that was cancelled
stays in the queue, with its arguments, until a thread is free.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, Final, ParamSpec, TypeVar

from gateway.errors import Fault, FaultKind

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_IDLE_SECONDS: Final = 30.0


class Threads(Executor):
    """At most `max_count` daemon threads. They start when needed and end when idle; waiting calls run in their order.

    Every method may be called from any thread.
    """

    def __init__(self, name: str, max_count: int) -> None:
        self._name = name
        self._max_count = max_count
        #: Calls that wait or run.
        self._unfinished: dict[Future[Any], _Call] = {}
        self._running: set[_Call] = set()
        #: Held for what is below.
        self._lock = threading.Lock()
        #: Calls that wait for a thread.
        self._waiting: deque[_Call] = deque()
        #: Threads that wait for a call; the last of them gets the next, so that the others end.
        self._idle: list[_Thread] = []
        self._thread_count = 0
        self._is_shut_down = False

    def submit(
        self,
        call: Callable[_Arguments, _Result],
        /,
        *arguments: _Arguments.args,
        **options: _Arguments.kwargs,
    ) -> Future[_Result]:
        """Run a call in a thread, at once if one is free. It fails with Fault OUT_OF_THREADS if none can be started."""
        work = (lambda: call(*arguments, **options)) if arguments or options else call
        future: Future[_Result] = Future()
        submitted = _Call(future, work)
        with self._lock:
            self._unfinished[future] = submitted
            if self._idle:
                self._idle.pop().give(submitted)
                return future
            self._waiting.append(submitted)
            needs_thread = self._thread_count < self._max_count
            self._thread_count += needs_thread
        if needs_thread:
            self._start_thread()
        return future

    def submit_after(self, before: Future[Any], call: Callable[[], _Result]) -> Future[_Result]:
        """Run a call when another one has ended: at once, in the same thread, unless other calls wait for a thread.

        `before` is the last call of such a chain. Where it fails, or is dropped, the call is dropped, too.
        """
        future: Future[_Result] = Future()
        submitted = _Call(future, call)
        with self._lock:
            ahead = self._unfinished.get(before)
            if ahead is not None:
                self._unfinished[future] = ahead.following = submitted
                return future
        if _has_failed(before):
            future.cancel()
            return future
        return self.submit(call)

    def cancel(self, future: Future[Any]) -> bool:
        """Drop a call that has not begun; return whether it had not."""
        if not future.cancel():
            return False
        cancelled = self._unfinished.get(future)
        if cancelled is not None:
            cancelled.work = None
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
        while wait and (unfinished := [future for future in list(self._unfinished) if not future.cancelled()]):
            done = threading.Event()
            unfinished[0].add_done_callback(lambda _, done=done: done.set())  # type: ignore[misc]  # a default argument
            if not done.wait(max(0.0, until - time.monotonic())):
                break
        with self._lock:
            self._is_shut_down = True
            self._thread_count -= len(self._idle)
            while self._idle:
                self._idle.pop().give(None)

    def _start_thread(self) -> None:
        """Start a thread that was counted. Where the system allows no more, the threads there are take what waits."""
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError as exc:
            refused: list[_Call] = []
            dropped: list[_Call] = []
            with self._lock:
                self._thread_count -= 1
                if not self._thread_count:
                    refused += self._waiting
                    self._waiting.clear()
                for call in refused:
                    del self._unfinished[call.future]
                    dropped += self._forget_following(call)
            for call in refused:
                if call.future.set_running_or_notify_cancel():
                    call.future.set_exception(_refusal(exc))
            _drop(dropped)

    def _run(self) -> None:
        thread = _Thread()
        with self._lock:
            call = self._take(thread)
        call = call or self._wait(thread)
        while call is not None:
            call.started = time.monotonic()
            self._running.add(call)
            call.run()
            self._running.discard(call)
            following = self._end(call, thread)
            # Before the wait for the next: it may hold a body's chunks.
            del call
            call = following or self._wait(thread)
            del following

    def _end(self, ended: _Call, thread: _Thread) -> _Call | None:
        """Record the end of a call. Return the next for its thread, None if there is none: it is idle then."""
        dropped: list[_Call] = []
        with self._lock:
            del self._unfinished[ended.future]
            following = ended.following
            if following is not None and _has_failed(ended.future):
                dropped = self._forget_following(ended)
                following = None
            if following is not None and self._waiting:
                # Calls that wait come first: a long chain does not keep them from its thread.
                self._waiting.append(following)
                following = None
            taken = following or self._take(thread)
        # Outside of the lock: callbacks may submit calls.
        _drop(dropped)
        return taken

    def _forget_following(self, call: _Call) -> list[_Call]:
        """Return the calls that were to run after this one, which will not end well. The lock is held."""
        forgotten: list[_Call] = []
        following = call.following
        while following is not None:
            forgotten.append(following)
            del self._unfinished[following.future]
            following = following.following
        return forgotten

    def _take(self, thread: _Thread) -> _Call | None:
        """Return a call that waits. If there is none, the thread is idle. The lock is held."""
        if self._waiting:
            return self._waiting.popleft()
        if self._is_shut_down:
            self._thread_count -= 1
            thread.give(None)
        else:
            self._idle.append(thread)
        return None

    def _wait(self, thread: _Thread) -> _Call | None:
        """Return the next call of an idle thread, None if the thread is to end."""
        while not thread.was_given(_IDLE_SECONDS):
            with self._lock:
                # A call may have been given to it meanwhile.
                if thread in self._idle:
                    self._idle.remove(thread)
                    self._thread_count -= 1
                    return None
        return thread.take()


class _Thread:
    """Where an idle thread waits."""

    __slots__ = ("_call", "_given")

    def __init__(self) -> None:
        self._call: _Call | None = None
        self._given = threading.Lock()
        self._given.acquire()

    def give(self, call: _Call | None) -> None:
        """Wake it up with its next call, or with None: to end."""
        self._call = call
        self._given.release()

    def was_given(self, limit_seconds: float) -> bool:
        """Wait until `give` was called; return False if it was not, within the limit."""
        return self._given.acquire(timeout=limit_seconds)

    def take(self) -> _Call | None:
        """Return what was given."""
        call, self._call = self._call, None
        return call


class _Call:
    """A call with its result."""

    __slots__ = ("following", "future", "started", "work")

    def __init__(self, future: Future[Any], work: Callable[[], Any]) -> None:
        self.future = future
        self.work: Callable[[], Any] | None = work
        #: Runs after it, see `submit_after`.
        self.following: _Call | None = None
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


def _refusal(exc: RuntimeError) -> Fault:
    return Fault(
        FaultKind.OUT_OF_THREADS,
        "The system lets the gateway start no thread: try again, or raise its limit (ulimit -u, pids.max of a cgroup).",
        reason=str(exc),
        retry_after_seconds=1,
    )


def _drop(calls: list[_Call]) -> None:
    for call in calls:
        call.work = None
        call.future.cancel()


def _has_failed(ended: Future[Any]) -> bool:
    return ended.cancelled() or ended.exception() is not None

"""Threads for blocking calls: bounded, daemons, and no longer there than needed."""

from __future__ import annotations

import functools
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from gateway import threads as threads_module
from gateway.errors import Fault, FaultKind
from gateway.threads import Threads

WAIT_SECONDS = 5.0


class Chunk:
    """Something that a call holds."""


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """Give an event that calls wait for; it is set at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


def wait_for_threads(name: str, count: int) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while sum(thread.name == name for thread in threading.enumerate()) != count:
        assert time.monotonic() < until
        time.sleep(0.001)


def wait_until_idle(threads: Threads) -> None:
    """Wait until a call is forgotten: its future is done before."""
    assert threads.submit(int, "1").result(WAIT_SECONDS) == 1


def test_calls_run_with_their_arguments_and_return_or_raise() -> None:
    threads = Threads("t-results", 2)
    assert threads.submit(divmod, 7, 2).result(WAIT_SECONDS) == (3, 1)
    assert threads.submit(int, "11", base=2).result(WAIT_SECONDS) == 3
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 1, 0).result(WAIT_SECONDS)
    threads.shutdown()


def test_no_more_threads_than_allowed_run_and_all_of_them_are_daemons(held: threading.Event) -> None:
    threads = Threads("t-bounded", 3)
    calls = [threads.submit(held.wait, WAIT_SECONDS) for _ in range(20)]
    mine = [thread for thread in threading.enumerate() if thread.name == "t-bounded"]
    assert len(mine) == 3
    assert all(thread.daemon for thread in mine)
    held.set()
    assert all(call.result(WAIT_SECONDS) for call in calls)
    threads.shutdown()


def test_call_runs_after_a_burst_whose_threads_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that had waited was counted as an idle thread at its end: after 30 s, as many later calls never began."""
    monkeypatch.setattr(threads_module, "_IDLE_SECONDS", 0.01)
    threads = Threads("t-burst", 2)
    for call in [threads.submit(time.sleep, 0.001) for _ in range(20)]:
        call.result(WAIT_SECONDS)
    wait_for_threads("t-burst", 0)
    assert threads.submit(int, "5").result(WAIT_SECONDS) == 5
    threads.shutdown()


def test_cancelled_call_that_waits_holds_nothing_any_more(held: threading.Event) -> None:
    """ThreadPoolExecutor keeps it, with its arguments, until a thread is free."""
    threads = Threads("t-cancelled", 1)
    running = threads.submit(held.wait, WAIT_SECONDS)
    chunk = Chunk()
    reference = weakref.ref(chunk)
    waiting = threads.submit(repr, chunk)
    del chunk
    assert threads.cancel(waiting)
    gc.collect()
    assert reference() is None
    held.set()
    running.result(WAIT_SECONDS)
    assert not threads.cancel(running)
    threads.shutdown()


def test_result_of_a_call_is_not_held_by_its_thread() -> None:
    threads = Threads("t-result", 1)
    reference = weakref.ref(threads.submit(Chunk).result(WAIT_SECONDS))
    threads.submit(int).result(WAIT_SECONDS)
    gc.collect()
    assert reference() is None
    threads.shutdown()


def test_chain_of_calls_runs_in_one_thread_in_its_order(held: threading.Event) -> None:
    threads = Threads("t-chain", 4)
    ran: list[tuple[int, int]] = []

    def run(number: int) -> None:
        held.wait(WAIT_SECONDS)
        ran.append((number, threading.get_ident()))

    last = threads.submit(run, 0)
    for number in (1, 2, 3):
        last = threads.submit_after(last, functools.partial(run, number))
    held.set()
    last.result(WAIT_SECONDS)
    assert [number for number, _ in ran] == [0, 1, 2, 3]
    assert len({ident for _, ident in ran}) == 1
    threads.shutdown()


def test_call_after_one_that_has_ended_runs_at_once() -> None:
    threads = Threads("t-ended", 1)
    ended = threads.submit(int, "4")
    ended.result(WAIT_SECONDS)
    wait_until_idle(threads)
    assert threads.submit_after(ended, lambda: 5).result(WAIT_SECONDS) == 5
    threads.shutdown()


def test_calls_that_wait_for_a_thread_come_before_the_next_of_a_chain(held: threading.Event) -> None:
    threads = Threads("t-fair", 1)
    ran: list[str] = []
    first = threads.submit(held.wait, WAIT_SECONDS)
    following = threads.submit_after(first, lambda: ran.append("following"))
    threads.submit(ran.append, "other")
    held.set()
    following.result(WAIT_SECONDS)
    assert ran == ["other", "following"]
    threads.shutdown()


@pytest.mark.parametrize("how", ["it fails", "it is dropped"])
def test_calls_after_one_that_does_not_succeed_are_dropped_and_hold_nothing(held: threading.Event, how: str) -> None:
    threads = Threads("t-dropped", 1)
    running = threads.submit(held.wait, WAIT_SECONDS)
    ran: list[str] = []

    def fail() -> None:
        raise OSError

    chunk = Chunk()
    reference = weakref.ref(chunk)
    first = threads.submit(fail)
    following = threads.submit_after(first, functools.partial(ran.append, repr(chunk)))
    last = threads.submit_after(following, functools.partial(repr, chunk))
    del chunk
    if how == "it is dropped":
        assert threads.cancel(first)
    held.set()
    running.result(WAIT_SECONDS)
    with pytest.raises(CancelledError):
        last.result(WAIT_SECONDS)
    with pytest.raises(CancelledError):
        following.result(WAIT_SECONDS)
    wait_until_idle(threads)
    with pytest.raises(CancelledError):
        threads.submit_after(first, lambda: None).result(WAIT_SECONDS)
    gc.collect()
    assert reference() is None
    assert not ran
    threads.shutdown()


def test_threads_are_stuck_only_while_all_of_them_are_busy(held: threading.Event) -> None:
    threads = Threads("t-stuck", 2)
    threads.submit(held.wait, WAIT_SECONDS)
    assert threads.stuck_seconds == 0
    last = threads.submit(held.wait, WAIT_SECONDS)
    while not threads.stuck_seconds:
        pass
    held.set()
    last.result(WAIT_SECONDS)
    threads.shutdown()
    assert threads.stuck_seconds == 0


def test_shutdown_waits_for_calls_but_not_for_ever(held: threading.Event) -> None:
    threads = Threads("t-shutdown", 1)
    stuck = threads.submit(held.wait, WAIT_SECONDS)
    dropped = threads.submit(int)
    threads.shutdown(cancel_futures=True, limit_seconds=0.01)
    assert dropped.cancelled()
    assert not stuck.done()
    held.set()
    threads.shutdown()
    assert stuck.done()
    wait_for_threads("t-shutdown", 0)


def test_call_after_the_shutdown_still_runs() -> None:
    threads = Threads("t-late", 1)
    threads.submit(int).result(WAIT_SECONDS)
    threads.shutdown()
    assert threads.submit(int, "4").result(WAIT_SECONDS) == 4
    threads.shutdown()


def test_call_fails_where_the_system_allows_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads("t-refused", 2)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(Fault, match="no thread") as caught:
        threads.submit(int).result(WAIT_SECONDS)
    assert (caught.value.kind, caught.value.reason) == (FaultKind.OUT_OF_THREADS, "can't start new thread")
    threads.shutdown()


def test_calls_use_the_threads_there_are_where_the_system_allows_no_more(
    held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = Threads("t-few", 2)
    threads.submit(held.wait, WAIT_SECONDS)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        waiting = threads.submit(int, "5")
    held.set()
    assert waiting.result(WAIT_SECONDS) == 5
    threads.shutdown()


def test_call_after_one_that_no_thread_takes_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never ended: the call before it was refused only when another thread could not be started either."""
    threads = Threads("t-refused", 2)
    start = threading.Thread.start
    is_second_starting, may_refuse = threading.Event(), threading.Event()
    second = threading.Thread(target=lambda: threads.submit(int))

    def refuse(self: threading.Thread) -> None:
        if threading.current_thread() is second:
            is_second_starting.set()
            may_refuse.wait(WAIT_SECONDS)
        elif self.name == "t-refused":
            start(second)
            is_second_starting.wait(WAIT_SECONDS)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    refused = threads.submit(int)
    dropped = threads.submit_after(refused, int)
    may_refuse.set()
    second.join(WAIT_SECONDS)
    with pytest.raises(Fault, match="no thread"):
        refused.result(WAIT_SECONDS)
    with pytest.raises(CancelledError):
        dropped.result(WAIT_SECONDS)

"""The gateway's event loop: its iterations are those of asyncio's loop, also where it makes them itself."""

from __future__ import annotations

import asyncio
import contextvars
import math
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway.aiohttp_seam.loop import DirectLoop

LOOPS = (asyncio.SelectorEventLoop, DirectLoop)
VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("VARIABLE", default=0)


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    made = request.param()
    yield made
    made.close()


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Return three pairs of connected sockets."""
    made = [socket.socketpair() for _ in range(3)]
    yield made
    for sock in (sock for pair in made for sock in pair):
        sock.close()


def run(loop: asyncio.AbstractEventLoop, until: Callable[[], bool], iterations: int = 100) -> None:
    """Run iterations until something is so."""
    for _ in range(iterations):
        if until():
            return
        loop._run_once()  # type: ignore[attr-defined]  # typeshed leaves it out
    raise AssertionError(f"not within {iterations} iterations")


def test_what_a_callback_queues_runs_after_the_callbacks_of_all_sockets_that_were_ready(
    loop: Any, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    events: list[str] = []

    def read(name: str, sock: socket.socket) -> None:
        sock.recv(10)
        events.append(f"read {name}")
        loop.call_soon(events.append, f"queued by {name}")

    for number, (ours, theirs) in enumerate(pairs):
        loop.add_reader(ours, read, str(number), ours)
        theirs.send(b"x")
    run(loop, lambda: len(events) == 6)
    assert events == [f"read {number}" for number in range(3)] + [f"queued by {number}" for number in range(3)]


def test_socket_that_another_callback_has_removed_is_not_called(
    loop: Any, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    called: list[int] = []

    def read(number: int) -> None:
        called.append(number)
        for ours, _ in pairs:
            loop.remove_reader(ours)

    for number, (ours, theirs) in enumerate(pairs):
        loop.add_reader(ours, read, number)
        theirs.send(b"x")
    run(loop, lambda: bool(called))
    loop.call_soon(called.append, 9)
    run(loop, lambda: called[-1] == 9)
    assert called == [0, 9]


def test_descriptor_that_is_used_again_within_an_iteration_has_none_of_the_events_before(
    loop: Any, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """A connection that is still being made would be taken for one that is open."""
    called: list[str] = []
    (first, its_peer), (second, _), (third, _) = pairs
    number = second.fileno()

    def replace() -> None:
        called.append("replaced")
        loop.remove_reader(first)
        loop.remove_writer(number)
        second.close()
        # It gets the lowest number that is free.
        again = third.dup()
        assert again.fileno() == number
        loop.add_writer(again, write, again)

    def write(sock: socket.socket) -> None:
        called.append("written")
        loop.remove_writer(sock)
        sock.close()

    loop.add_reader(first, replace)
    its_peer.send(b"x")
    loop.add_writer(second, called.append, "old")
    loop._run_once()
    assert called == ["replaced"]
    run(loop, lambda: len(called) == 2)
    assert called == ["replaced", "written"]


def test_bug_in_one_callback_is_reported_and_the_others_run(
    loop: Any, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    called: list[str] = []
    loop.set_exception_handler(lambda _, context: called.append(type(context["exception"]).__name__))

    def fail(sock: socket.socket) -> None:
        loop.remove_reader(sock)
        raise ZeroDivisionError

    for ours, theirs in pairs:
        loop.add_reader(ours, fail, ours)
        theirs.send(b"x")
    run(loop, lambda: len(called) == 3)
    assert called == ["ZeroDivisionError"] * 3


def test_callbacks_of_sockets_have_a_context_each(loop: Any, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    found: list[int] = []

    def read(number: int, sock: socket.socket) -> None:
        sock.recv(1)
        found.append(VARIABLE.get())
        VARIABLE.set(number + 1)

    for number, (ours, _) in enumerate(pairs):
        loop.add_reader(ours, read, number, ours)
    for turn in range(2):
        for _, theirs in pairs:
            theirs.send(b"x")
        count = 3 * (turn + 1)
        run(loop, lambda count=count: len(found) == count)  # type: ignore[misc]  # mypy: no type of default
    assert found == [0, 0, 0, 1, 2, 3]
    assert VARIABLE.get() == 0


@pytest.mark.parametrize("is_ready", [False, True], ids=["idle", "a socket always ready"])
def test_timers_run_in_their_order_and_cancelled_ones_do_not(
    loop: Any, pairs: list[tuple[socket.socket, socket.socket]], is_ready: bool
) -> None:
    called: list[int] = []
    ours, theirs = pairs[0]
    if is_ready:
        theirs.send(b"x")
    loop.add_reader(ours, lambda: None)
    loop.call_later(0.03, called.append, 3)
    loop.call_later(0.01, called.append, 1).cancel()
    loop.call_later(0.02, called.append, 2)
    loop.call_later(0.04, loop.stop)
    loop.run_forever()
    assert called == [2, 3]


@pytest.mark.parametrize("seconds", [2_147_484.0, 1e9, math.inf], ids=["25 days", "31 years", "never"])
def test_timer_in_the_distant_future_is_waited_for(
    loop: Any, pairs: list[tuple[socket.socket, socket.socket]], seconds: float
) -> None:
    """epoll refused a time of more than 24.8 days, and the loop ended."""
    ours, theirs = pairs[0]
    loop.add_reader(ours, loop.stop)
    loop.call_later(seconds, loop.stop)
    loop.call_soon(loop.call_soon, theirs.send, b"x")
    loop.run_forever()
    assert ours.recv(1) == b"x"


def test_stop_in_a_callback_lets_the_iteration_end(loop: Any, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    called: list[int] = []

    def read(number: int, sock: socket.socket) -> None:
        sock.recv(1)
        called.append(number)
        loop.stop()

    for number, (ours, theirs) in enumerate(pairs):
        loop.add_reader(ours, read, number, ours)
        theirs.send(b"x")
    loop.run_forever()
    assert called == [0, 1, 2]


async def test_tests_run_in_the_loop_that_the_gateway_runs_in() -> None:
    assert isinstance(asyncio.get_running_loop(), DirectLoop)

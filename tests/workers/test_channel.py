"""The channel between the supervisor and a worker."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pickle
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gateway.workers import channel
from gateway.workers.channel import Channel, Kind
from tests.peers import TIMEOUT_SECONDS, wait_until


class End:
    """One end of a channel, with what arrived at it."""

    def __init__(self) -> None:
        self.received: list[tuple[Kind, Any]] = []
        self.handlers: dict[Kind, Callable[[Any], None]] = {kind: functools.partial(self._keep, kind) for kind in Kind}
        self.ended = asyncio.Event()

    async def open(self, sock: socket.socket) -> End:
        self.channel = await Channel.open(sock, self.handlers, self.ended.set)
        return self

    def _keep(self, kind: Kind, content: Any) -> None:
        self.received.append((kind, content))

    async def wait_end(self) -> None:
        await asyncio.wait_for(self.ended.wait(), TIMEOUT_SECONDS)


@contextlib.asynccontextmanager
async def two_ends() -> AsyncIterator[tuple[End, End]]:
    left, right = socket.socketpair()
    ends = await End().open(left), await End().open(right)
    try:
        yield ends
    finally:
        for end in ends:
            end.channel.close()
        for end in ends:
            await end.wait_end()


@contextlib.asynccontextmanager
async def end_and_socket() -> AsyncIterator[tuple[End, socket.socket]]:
    """Yield one end, and the socket of the other: a process that reads and writes at its own pace."""
    left, right = socket.socketpair()
    end = await End().open(left)
    try:
        with right:
            yield end, right
    finally:
        end.channel.close()
        await end.wait_end()


def fail(_content: object) -> None:
    raise RuntimeError("out of order")


def message(kind: int, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + bytes([kind]) + content


async def test_messages_arrive_whole_and_in_their_order_in_both_directions() -> None:
    contents = [None, {"a": 1}, b"x" * 2**20, list(range(1000))]
    async with two_ends() as (left, right):
        for content in contents:
            left.channel.send(Kind.PREPARE, content)
            right.channel.send(Kind.PREPARED, content)
        await wait_until(lambda: len(left.received) == len(right.received) == len(contents))
        assert right.received == [(Kind.PREPARE, content) for content in contents]
        assert left.received == [(Kind.PREPARED, content) for content in contents]


async def test_snapshot_is_handled_as_the_bytes_that_were_sent() -> None:
    async with two_ends() as (left, right):
        left.channel.send(Kind.SNAPSHOT, [1, 2])
        left.channel.send_pickled(Kind.SNAPSHOT, b"as it is")
        await wait_until(lambda: len(right.received) == 2)
        assert pickle.loads(right.received[0][1]) == [1, 2]
        assert right.received[1] == (Kind.SNAPSHOT, b"as it is")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
async def test_message_in_pieces_of_any_size_is_handled_once_and_whole(size: int) -> None:
    wire = message(Kind.READY, pickle.dumps("one")) + message(Kind.PREPARED, pickle.dumps("two"))
    async with end_and_socket() as (end, sock):
        for start in range(0, len(wire), size):
            sock.send(wire[start : start + size])
            await asyncio.sleep(0)
        await wait_until(lambda: len(end.received) == 2)
        assert end.received == [(Kind.READY, "one"), (Kind.PREPARED, "two")]


async def test_messages_sent_before_a_close_arrive_before_the_end() -> None:
    async with two_ends() as (left, right):
        for number in range(100):
            left.channel.send(Kind.PREPARED, b"x" * 10_000 + bytes([number]))
        left.channel.close()
        await right.wait_end()
        assert [content[-1] for _, content in right.received] == list(range(100))
        assert not right.channel.is_open


async def test_last_messages_of_a_process_that_died_arrive_though_sending_to_it_fails_first() -> None:
    async with end_and_socket() as (end, sock):
        sock.send(message(Kind.READY, pickle.dumps(1)) + message(Kind.SNAPSHOT, b"last counts"))
        sock.close()
        # Before the loop looks at what has arrived.
        end.channel.send(Kind.SCRAPE)
        await end.wait_end()
        assert end.received == [(Kind.READY, 1), (Kind.SNAPSHOT, b"last counts")]


async def test_half_a_message_at_the_end_is_no_message() -> None:
    async with end_and_socket() as (end, sock):
        sock.send(message(Kind.READY, pickle.dumps(1))[:-1])
        sock.close()
        await end.wait_end()
        assert end.received == []


async def test_sending_to_a_process_that_reads_nothing_does_not_block_and_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel, "MAX_HELD_BYTES", 2**20)
    async with end_and_socket() as (end, _sock):
        sent_bytes = 0
        while end.channel.is_open and sent_bytes < 2**24:
            end.channel.send(Kind.HEALTH, os.urandom(2**14))
            sent_bytes += 2**14
        await end.wait_end()
        assert sent_bytes < 2**22
        assert end.channel.held_bytes == 0


async def test_sending_after_the_end_does_nothing() -> None:
    async with two_ends() as (left, right):
        left.channel.close()
        await right.wait_end()
        right.channel.send(Kind.SCRAPE)
        left.channel.send(Kind.SCRAPE)


@pytest.mark.expected_log("gateway", "bug in the handling of a message", reason="it is the test's subject")
async def test_bug_in_a_handler_leaves_the_messages_after_it_alone() -> None:
    async with two_ends() as (left, right):
        right.handlers[Kind.READY] = fail
        del right.handlers[Kind.SCRAPE]
        for kind in (Kind.READY, Kind.SCRAPE, Kind.DRAIN):
            left.channel.send(kind)
        await wait_until(lambda: right.received == [(Kind.DRAIN, None)])

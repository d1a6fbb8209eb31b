"""What the supervisor asks of workers for the API: their transfers, their failures, and to cancel a transfer.

A QUERY has a number; its REPLYs have it, too, each with some of the rows: thousands of them take a while to pickle.
A worker that does not respond within a second is left out: the rows of the others are right all the same.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

from gateway.handler import ExchangeHandler
from gateway.workers.channel import Channel, Kind
from gateway.workers.process import WorkerProcess

#: For a worker to respond.
_REPLY_SECONDS: Final = 1.0
#: Pickling them takes a millisecond or two.
_ROWS_PER_REPLY: Final = 250


class Question(enum.Enum):
    """What is asked for; CANCEL is followed by the transfer's id and the operator's address."""

    TRANSFERS = enum.auto()
    FAILURES = enum.auto()
    CANCEL = enum.auto()


class LiveResponder:
    """Responds in a worker. `keep` runs a task until the worker ends."""

    def __init__(
        self, exchanges: ExchangeHandler, channel: Channel, keep: Callable[[Coroutine[Any, Any, None], str], None]
    ) -> None:
        self._exchanges = exchanges
        self._channel = channel
        self._keep = keep

    def receive(self, content: tuple[int, Question, tuple[str, ...]]) -> None:
        """Take in a QUERY."""
        number, question, arguments = content
        self._keep(self._respond(number, question, arguments), "query")

    async def _respond(self, number: int, question: Question, arguments: tuple[str, ...]) -> None:
        rows = await self._find(question, arguments)
        for start in range(0, len(rows), _ROWS_PER_REPLY):
            self._channel.send(Kind.REPLY, (number, rows[start : start + _ROWS_PER_REPLY], False))
            await asyncio.sleep(0)
        self._channel.send(Kind.REPLY, (number, [], True))

    async def _find(self, question: Question, arguments: tuple[str, ...]) -> list[Any]:
        match question:
            case Question.TRANSFERS:
                return await self._exchanges.live.rows()
            case Question.FAILURES:
                return self._exchanges.failures.rows()
            case Question.CANCEL:
                return [True] if self._exchanges.cancel(*arguments) else []


class LiveQueries:
    """Asks in the supervisor. `receive` and `forget` are to be called for each REPLY and each end of a worker."""

    def __init__(self) -> None:
        self._number = 0
        #: Rows so far, and what is done when they are all here; by the number of the QUERY and the worker.
        self._asked: dict[tuple[int, WorkerProcess], tuple[list[Any], asyncio.Future[None]]] = {}

    async def ask(self, workers: Collection[WorkerProcess], question: Question, *arguments: str) -> list[Any]:
        """Return the rows of these workers, of each that has sent all of its own within a second."""
        self._number += 1
        number, loop = self._number, asyncio.get_running_loop()
        keys = [(number, worker) for worker in workers]
        if not keys:
            return []
        futures = []
        for key in keys:
            future = loop.create_future()
            self._asked[key] = ([], future)
            futures.append(future)
            key[1].channel.send(Kind.QUERY, (number, question, arguments))
        try:
            await asyncio.wait(futures, timeout=_REPLY_SECONDS)
            return [row for key in keys for row in self._asked[key][0] if self._asked[key][1].done()]
        finally:
            for key in keys:
                del self._asked[key]

    def receive(self, worker: WorkerProcess, content: tuple[int, list[Any], bool]) -> None:
        """Take in a REPLY; one that is too late is dropped."""
        number, rows, is_last = content
        asked = self._asked.get((number, worker))
        if asked is not None:
            asked[0].extend(rows)
            if is_last and not asked[1].done():
                asked[1].set_result(None)

    def forget(self, worker: WorkerProcess) -> None:
        """Wait for no reply of a worker that has ended: its transfers have ended with it."""
        for (_, other), (rows, future) in self._asked.items():
            if other is worker and not future.done():
                rows.clear()
                future.set_result(None)

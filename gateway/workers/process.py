"""One worker as the supervisor sees it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import io
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from gateway.workers.channel import Channel, Kind
from gateway.workers.output import LastWords, Pipe
from gateway.workers.template import Child, Template

#: For what a worker has sent before its end. Only a process that it started can keep its channel and pipe open.
_END_SECONDS: Final = 0.5


class State(enum.Enum):
    """Where a worker is in its life, in this order."""

    STARTING = enum.auto()
    #: It accepts connections.
    READY = enum.auto()
    #: It was asked to drain.
    DRAINING = enum.auto()
    #: It was asked to stop.
    STOPPING = enum.auto()


#: What is done with a message of a worker.
WorkerHandlers = dict[Kind, Callable[["WorkerProcess", Any], None]]


class WorkerProcess:
    """A worker: its process, its channel, what it writes to standard error. Made by `start`; `wait_end` closes it."""

    def __init__(self, child: Child, row: int) -> None:
        self._child = child
        self.pid = child.pid
        #: In the LoadTable.
        self.row = row
        #: Of the config it has.
        self.generation = 0
        self.state = State.STARTING
        self.started = time.monotonic()
        self.last_words = LastWords(lambda: f"worker {self.pid}")
        #: Why the supervisor has killed it.
        self.kill_reason = ""
        #: Why it cannot start, as it has reported.
        self.failure = ""
        #: The worker whose place it takes, which drains once this one is ready.
        self.replaces: WorkerProcess | None = None
        #: When it was told to stop, by the monotonic clock.
        self.stopped_at = 0.0
        #: Exchanges that were left when its drain had ended.
        self.exchanges_left = 0
        #: Set when its drain is over, and by the end.
        self.is_drained = asyncio.Event()
        #: Set when another takes its place: it has ended, or asked for that.
        self.is_leaving = asyncio.Event()
        self._has_ended = False
        self._last_beat = 0.0
        self._missed_beats = 0
        self.channel: Channel

    @classmethod
    async def start(
        cls,
        template: Template,
        listener: socket.socket,
        *,
        row: int,
        handlers: WorkerHandlers,
    ) -> WorkerProcess:
        """Fork a worker; it waits for START. Raises OSError. Cancelling it leaves nothing open."""
        with contextlib.ExitStack() as own, contextlib.ExitStack() as passed:
            sock, other_sock = socket.socketpair()
            own.callback(sock.close)
            passed.callback(other_sock.close)
            errors, other_errors = _open_pipe(own, passed)
            # In the order of `worker.run_worker`.
            child = await template.fork([other_sock.fileno(), listener.fileno(), template.output_lock, other_errors])
            worker = cls(child, row)
            await worker._open(sock, errors, handlers)
            own.pop_all()
        return worker

    async def _open(self, sock: socket.socket, errors: io.FileIO, handlers: WorkerHandlers) -> None:
        bound = _BoundHandlers(self, handlers)
        self.channel = await Channel.open(sock, bound, _ignore)
        self._errors = await Pipe.open(errors, self.last_words.feed)

    @property
    def is_alive(self) -> bool:
        """Whether its process has not ended."""
        return not self._has_ended

    @property
    def lived_seconds(self) -> float:
        """How long it has existed."""
        return time.monotonic() - self.started

    @property
    def end(self) -> str:
        """How its process ended; "" if it ended as it was asked to."""
        if self._child.exited.cancelled():
            return "" if self.state is State.STOPPING else "its exit status is not known without the template"
        code = os.waitstatus_to_exitcode(self._child.exited.result())
        if code < 0:
            return f"{self.kill_reason or 'killed by'} {signal.Signals(-code).name}"
        if not code and self.failure:
            return f"it cannot start: {self.failure}"
        return "" if not code and self.state is State.STOPPING else f"exit status {code}"

    def count_missed(self, beat: float) -> int:
        """Return how many times in a row `beat` has not changed. The supervisor's own pauses do not count."""
        self._missed_beats = self._missed_beats + 1 if beat == self._last_beat else 0
        self._last_beat = beat
        return self._missed_beats

    async def wait_exit(self) -> None:
        """Wait until its process has ended and what it has sent is handled."""
        await asyncio.wait({self._child.exited})
        # Without the template only the channel shows the end.
        seconds = None if self._child.exited.cancelled() else _END_SECONDS
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.channel.ended.wait(), seconds)
        self._has_ended = True
        self.channel.abort()

    async def wait_output(self) -> None:
        """After `wait_exit`: wait until what it has written to standard error is read, and close the rest."""
        await self._errors.close(_END_SECONDS)
        self.last_words.hold()


class _BoundHandlers(Mapping[Kind, Callable[[Any], None]]):
    """The handlers of all workers' messages, as those of one worker."""

    def __init__(self, worker: WorkerProcess, handlers: WorkerHandlers) -> None:
        self._worker = worker
        self._handlers = handlers

    def __getitem__(self, kind: Kind) -> Callable[[Any], None]:
        return partial(self._handlers[kind], self._worker)

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._handlers)

    def __len__(self) -> int:
        return len(self._handlers)


def _ignore() -> None:
    """The end of a channel is seen by the end of the process."""


def _open_pipe(own: contextlib.ExitStack, passed: contextlib.ExitStack) -> tuple[io.FileIO, int]:
    reading, writing = os.pipe()
    passed.callback(os.close, writing)
    file = io.FileIO(reading, "rb")
    own.callback(file.close)
    return file, writing

"""The process of one worker: a `Gateway` that shares the traffic port, led by the supervisor over its channel.

    from the supervisor   what the worker does
    --------------------  ---------------------------------------------------------------
    START                 starts the gateway, then READY or FAILED
    PREPARE               makes what a config needs, then PREPARED, with the reasons if it cannot be used
    COMMIT, ABORT         puts it in force, drops it
    DRAIN                 drains, then DRAINED; exchanges that are left go on
    STOP                  cuts what is left, sends its last counts, exits
    the channel's end     the supervisor is gone: drains, cuts what is left, exits

Signals that a terminal or a service manager sends to the whole group are the supervisor's business: SIGINT and SIGHUP
are ignored here. SIGTERM asks the supervisor for a replacement, and so for a drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from gateway.aiohttp_seam import make_loop
from gateway.config import Config
from gateway.downstream.text_line import choose_describe
from gateway.drain import Queue
from gateway.filters import FilterProblem
from gateway.memory import tune_memory
from gateway.observe.log import LineStyle, LineWriter, start_logging
from gateway.server import Gateway, Shared
from gateway.sharing import SharedLimits
from gateway.workers.channel import Channel, Kind
from gateway.workers.counts import CountSender
from gateway.workers.failures import FailureSender
from gateway.workers.live import LiveResponder
from gateway.workers.load import LoadRow, LoadTable
from gateway.workers.template import enable_stack_dumps, name_process

#: Between two beats: the supervisor counts those that are missing.
BEAT_SECONDS: Final = 1.0
#: At this signal a worker writes its stacks to standard error.
DUMP_SIGNAL: Final = signal.SIGUSR2
#: For the supervisor to read the last messages.
_LAST_SECONDS: Final = 5.0
_STANDARD_ERROR: Final = 2
_log = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True)
class Start:
    """The content of START."""

    config: Config
    #: In the LoadTable.
    row: int


def run_worker(descriptors: list[int], *, table: LoadTable, style: LineStyle) -> None:
    """Be a worker until it is stopped. `descriptors`: channel, listening socket, lock of the log, standard error."""
    channel, listener, lock, pipe = descriptors
    name_process("gateway-worker")
    errors = _StandardError(pipe)
    enable_stack_dumps(DUMP_SIGNAL)
    writer = start_logging(style, lock)
    writer.addFilter(_add_process)

    async def serve() -> None:
        worker = Worker(socket.socket(fileno=listener), table, style, writer, on_orphaned=errors.restore)
        await worker.serve(socket.socket(fileno=channel))

    try:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(serve())
    finally:
        writer.stop()


class _StandardError:
    """Standard error: that of the supervisor, replaced by a pipe to it."""

    def __init__(self, pipe: int) -> None:
        self._before = os.dup(_STANDARD_ERROR)
        self._replace(pipe)

    def restore(self) -> None:
        """Write to that of the supervisor: the pipe has no reader any more."""
        self._replace(self._before)

    def _replace(self, descriptor: int) -> None:
        os.dup2(descriptor, _STANDARD_ERROR)
        os.close(descriptor)


def _add_process(record: logging.LogRecord) -> bool:
    """Add the process id to a log record."""
    record.keys = {"worker": os.getpid(), **getattr(record, "keys", {})}
    return True


class Worker:
    """The worker of this process. `handlers` and `on_beat` may get more before `serve`."""

    #: From START on.
    gateway: Gateway

    def __init__(
        self,
        listener: socket.socket,
        table: LoadTable,
        style: LineStyle,
        writer: LineWriter,
        *,
        on_orphaned: Callable[[], None],
    ) -> None:
        self._listener = listener
        self._table = table
        self._style = style
        self._writer = writer
        self._on_orphaned = on_orphaned
        self._tasks: set[asyncio.Task[None]] = set()
        #: None if the channel has ended before.
        self._start: asyncio.Future[Start | None] = asyncio.get_running_loop().create_future()
        #: A config is prepared only by a gateway that has started.
        self._has_started = asyncio.Event()
        self._is_stopping = asyncio.Event()
        #: The number of the last PREPARE whose config is not to be used.
        self._aborted = 0
        #: Called each second, and when the last exchange has ended.
        self.on_beat: list[Callable[[], None]] = [self._beat]
        self.handlers: dict[Kind, Callable[[Any], None]] = {
            Kind.START: self._start.set_result,
            Kind.PREPARE: lambda content: self._keep(self._prepare(*content), "prepare"),
            Kind.COMMIT: lambda _: self.gateway.commit_reload(),
            Kind.ABORT: self._abort,
            Kind.DRAIN: lambda queue: self._keep(self._drain(queue), "drain"),
            Kind.STOP: lambda _: self._stop(),
        }
        self.channel: Channel
        self._limits = SharedLimits(lambda messages: self.channel.send(Kind.LEASE_REQUEST, messages))
        self.handlers |= {Kind.LEASE_GRANT: self._limits.receive, Kind.HEALTH: self._limits.receive_health}

    async def serve(self, channel: socket.socket) -> None:
        """Serve from START to STOP, or to the end of the channel."""
        self.channel = await Channel.open(channel, self.handlers, self._lose_supervisor)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: self.channel.send(Kind.RETIRE))
        start = await self._start
        if start is not None and await self._start_gateway(start):
            await self._serve_until_stopped()
        self.channel.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.channel.ended.wait(), _LAST_SECONDS)

    async def _start_gateway(self, start: Start) -> bool:
        """Start the gateway; return whether that has succeeded."""
        self._row = LoadRow(self._table, start.row)
        self.gateway = Gateway(
            start.config,
            self._writer.add_line,
            describe=choose_describe(self._style),
            shared=Shared(self._listener, self._row, self._limits),
        )
        self.gateway.stats.dropped_log_lines = lambda: self._writer.dropped_lines
        counts = CountSender(self.gateway, self.channel)
        failures = FailureSender(self.gateway.exchanges.failures, self.channel)
        self.on_beat += [failures.send_regularly, counts.send_regularly]
        self.handlers[Kind.SCRAPE] = counts.respond
        self.handlers[Kind.QUERY] = LiveResponder(self.gateway.exchanges, self.channel, self._keep).receive
        try:
            await self.gateway.start()
        except (FilterProblem, OSError, RuntimeError) as exc:
            self.channel.send(Kind.FAILED, str(exc))
            return False
        return True

    async def _serve_until_stopped(self) -> None:
        tune_memory()
        self._has_started.set()
        self._keep(self._beat_regularly(), "beat")
        self.channel.send(Kind.READY)
        if self._is_stopping.is_set():
            # It was told to stop while it started: there is nothing to drain, and no delay to wait for.
            self.gateway.stop_now()
        await self._is_stopping.wait()
        await self.gateway.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Before the last counts, which have the lines that could not be written.
        self._writer.stop()
        self._run_beat()

    async def _beat_regularly(self) -> None:
        while True:
            self._run_beat()
            await asyncio.sleep(BEAT_SECONDS)

    def _run_beat(self) -> None:
        for call in self.on_beat:
            call()

    def _beat(self) -> None:
        transfers = [each for route in self.gateway.stats.routes.values() for each in route.transfers.values()]
        self._row.tick(
            connections=self.gateway.connection_count,
            transfers=sum(each.in_flight for each in transfers),
            moved_bytes=sum(each.bytes_moved for each in transfers),
        )

    async def _prepare(self, number: int, config: Config) -> None:
        await self._has_started.wait()
        problems = await self.gateway.prepare_reload(lambda: config)
        if self._aborted == number:
            self.gateway.abort_reload()
        else:
            self.channel.send(Kind.PREPARED, (number, problems))

    def _abort(self, number: int) -> None:
        self._aborted = number
        self.gateway.abort_reload()

    async def _drain(self, queue: Queue) -> None:
        await self._has_started.wait()
        await asyncio.wait({self.gateway.drain(queue)})
        self.channel.send(Kind.DRAINED, self.gateway.exchange_count)

    def _stop(self) -> None:
        self._is_stopping.set()
        if self._has_started.is_set():
            self.gateway.stop_now()

    def _lose_supervisor(self) -> None:
        """Drain and exit: nothing leads this worker any more."""
        if not self._start.done():
            self._start.set_result(None)
        if not self._is_stopping.is_set():
            self._on_orphaned()
            self._limits.lose_supervisor()
            _log.error("the supervisor process has ended: this worker drains and ends")
            self._is_stopping.set()

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

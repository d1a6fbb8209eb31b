"""The workers: starts them, replaces those that die, drains and stops them.

    worker                                      what is done
    ------------------------------------------  -----------------------------------------------------------------
    dies                                        logs its last words; starts another after a pause, see `restarts`
    has a loop that is stuck for 10 s           has it write its stacks, kills it
    asks to retire (SIGTERM), is one too many   drains it; starts another first, where one is to take its place
    cannot start, when the gateway starts       `start` fails with its reason

Each place is a task that keeps one worker running; each worker has a task that waits for its end.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

from gateway.config import Config
from gateway.drain import Queue
from gateway.workers.channel import Kind
from gateway.workers.process import State, WorkerHandlers, WorkerProcess
from gateway.workers.reload import Replacement
from gateway.workers.restarts import Pauses
from gateway.workers.template import Template
from gateway.workers.worker import BEAT_SECONDS, DUMP_SIGNAL, Start

#: Beats that are missing from a worker whose loop is stuck.
STUCK_BEATS: Final = 10
#: Limit for a worker to start: plug-ins may read models.
_START_SECONDS: Final = 60.0
#: For a worker that was told to stop: it gives cut exchanges a second.
_STOP_SECONDS: Final = 5.0
_log = logging.getLogger("gateway")


class StartError(RuntimeError):
    """A worker cannot start, or has died while the gateway started. The text has the reason."""


class WorkerPool:
    """All workers. `handlers` and the lists of calls may get more before `start`; `end` it after use."""

    def __init__(self, config: Config, template: Template) -> None:
        #: The config in force, and its number.
        self.config = config
        self.generation = 1
        self._template = template
        self._table = template.table
        #: Every worker whose process has not ended.
        self.workers: list[WorkerProcess] = []
        #: Workers that took the place of one that died.
        self.restart_count = 0
        self._replacement = Replacement(self._before_commit)
        self.handlers: WorkerHandlers = {
            Kind.READY: lambda worker, _: self._set_ready(worker),
            Kind.FAILED: _record_failure,
            Kind.PREPARED: self._replacement.handle_prepared,
            Kind.DRAINED: self._record_drained,
            Kind.RETIRE: lambda worker, _: self._make_way(worker),
        }
        #: Called with each worker before it gets its config.
        self.before_start: list[Callable[[WorkerProcess], None]] = []
        #: Called with a config that all workers have prepared, and those that put it in force next.
        self.before_commit: list[Callable[[Config, Collection[WorkerProcess]], None]] = []
        #: Called with each worker that is ready, and with each that has ended.
        self.on_ready: list[Callable[[WorkerProcess], None]] = []
        self.on_end: list[Callable[[WorkerProcess], None]] = [self._replacement.forget]
        #: Each keeps one worker running.
        self._places: list[asyncio.Task[None]] = []
        #: Each waits for the end of one worker.
        self._attendants: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Whether all places have had a worker that was ready: from then on those that die are replaced.
        self._has_started = False
        self._start_failure = ""
        #: Set when something happened that `start` waits for.
        self._has_progress = asyncio.Event()
        #: Only one replacement of the config at a time.
        self._replacing = asyncio.Lock()
        self._is_draining = False

    @property
    def transfer_count(self) -> int:
        """Transfers in flight, as of a second ago."""
        return sum(self._table.transfers(worker.row) for worker in self.workers)

    @property
    def serving(self) -> list[WorkerProcess]:
        """The workers that serve, those included that drain."""
        return [worker for worker in self.workers if worker.state in (State.READY, State.DRAINING)]

    async def start(self, listener: socket.socket, count: int) -> None:
        """Start this many workers, which accept from `listener`, and own it. Raises StartError; then call `end`."""
        self._listener = listener
        self._keep(self._tasks, self._watch_workers(), "watch")
        self.set_count(count)
        while sum(worker.state is State.READY for worker in self.workers) < count:
            await wait_first(self._has_progress, self._template.ended)
            self._has_progress.clear()
            if self._start_failure or self._template.ended.is_set():
                raise StartError(self._start_failure or "the template process has ended")
        self._has_started = True

    def set_count(self, count: int) -> None:
        """Keep this many workers running; those that are too many drain and end."""
        while len(self._places) < count:
            self._places.append(self._keep(self._tasks, self._fill_place(), f"worker place {len(self._places)}"))
        while len(self._places) > count:
            self._places.pop().cancel()

    async def replace_config(self, config: Config) -> list[str]:
        """Have all workers switch to a config, or none; return the reasons if one cannot."""
        async with self._replacing:
            asked = [worker for worker in self.workers if worker.state in (State.STARTING, State.READY)]
            problems = await self._replacement.replace(self.generation + 1, config, asked)
            if not problems:
                self.generation += 1
                self.config = config
        if not problems:
            for worker in self.workers:
                self._update_later(worker)
        return problems

    async def drain(self) -> None:
        """Drain all workers; return when all have drained: exchanges may be left."""
        self._is_draining = True
        # The workers have the socket until they have accepted what waits.
        self._listener.close()
        for place in self._places:
            place.cancel()
        for worker in self.workers:
            if worker.state is State.STARTING:
                self._stop(worker)
            elif worker.state is State.READY:
                self._begin_drain(worker, Queue.ACCEPTED)
        for worker in list(self.workers):
            await worker.is_drained.wait()

    async def end(self) -> None:
        """Stop the workers, and wait for their ends."""
        self._is_draining = True
        for place in self._places:
            place.cancel()
        await asyncio.gather(*self._places, return_exceptions=True)
        for worker in self.workers:
            self._stop(worker)
        # One that does not stop is killed by `_watch_workers` meanwhile.
        await asyncio.gather(*self._attendants)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()

    async def _fill_place(self) -> None:
        """Keep one worker running. When this is cancelled, the worker is retired, unless the gateway drains."""
        pauses = Pauses()
        worker: WorkerProcess | None = None
        try:
            while True:
                try:
                    worker = await self._start_worker(worker)
                except OSError as exc:
                    lived_seconds = 0.0
                    _log.error("a worker cannot be started: %s", exc)
                    self._report_failure(f"a worker cannot be started: {exc}")
                else:
                    await worker.is_leaving.wait()
                    if worker.is_alive:
                        continue
                    lived_seconds = worker.lived_seconds
                    self.restart_count += 1
                pause = pauses.after(lived_seconds)
                if pause:
                    _log.warning("the next worker starts in %g s: the last lived for %.3g s", pause, lived_seconds)
                await asyncio.sleep(pause)
        finally:
            # Of two, the one that was to take the other's place is not ready yet.
            for each in (worker, worker.replaces) if worker is not None and not self._is_draining else ():
                if each is not None:
                    self._retire(each)

    async def _start_worker(self, before: WorkerProcess | None) -> WorkerProcess:
        """Start a worker that takes the place of the one before, if that is still alive. Raises OSError."""
        row = self._table.take_row()
        try:
            worker = await WorkerProcess.start(self._template, self._listener, row=row, handlers=self.handlers)
        except BaseException:
            self._table.give_back(row)
            raise
        worker.replaces = before if before is None or before.is_alive else before.replaces
        self.workers.append(worker)
        for call in self.before_start:
            call(worker)
        worker.generation = self.generation
        worker.channel.send(Kind.START, Start(self.config, row))
        self._keep(self._attendants, self._attend(worker), f"worker {worker.pid}")
        return worker

    async def _attend(self, worker: WorkerProcess) -> None:
        """Wait for the end of a worker, and record it."""
        await worker.wait_exit()
        self.workers.remove(worker)
        self._table.give_back(worker.row)
        try:
            for call in self.on_end:
                call(worker)
        finally:
            worker.is_drained.set()
            worker.is_leaving.set()
        await worker.wait_output()
        if worker.end:
            keys = {"worker": worker.pid, "stderr": worker.last_words.text}
            _log.error("worker %d died: %s", worker.pid, worker.end, extra={"keys": keys})
            self._report_failure(worker.failure or f"worker {worker.pid} died: {worker.end}")

    def _report_failure(self, reason: str) -> None:
        """Record why a worker has ended: while the gateway starts, it is the reason why that cannot start."""
        if self._has_started:
            return
        self._start_failure = self._start_failure or reason
        self._has_progress.set()

    def _set_ready(self, worker: WorkerProcess) -> None:
        if worker.state is not State.STARTING:
            # It was told to stop meanwhile.
            return
        worker.state = State.READY
        self._table.set_ready(worker.row, is_ready=True)
        self._has_progress.set()
        for call in self.on_ready:
            call(worker)
        if self._has_started:
            _log.info("worker %d serves", worker.pid)
        if worker.replaces is not None:
            self._retire(worker.replaces)
            worker.replaces = None
        self._update_later(worker)

    def _before_commit(self, config: Config, workers: Collection[WorkerProcess]) -> None:
        for call in self.before_commit:
            call(config, workers)

    def _update_later(self, worker: WorkerProcess) -> None:
        if worker.state is State.READY and worker.generation != self.generation:
            self._keep(self._tasks, self._update(worker), "update")

    async def _update(self, worker: WorkerProcess) -> None:
        """Have a worker that started with another config switch to the one in force; end it if it cannot."""
        async with self._replacing:
            is_late = worker.generation != self.generation and worker.is_alive
            if is_late and await self._replacement.replace(self.generation, self.config, [worker]):
                self._kill(worker, "it could not switch to the config in force, so it got")

    def _make_way(self, worker: WorkerProcess) -> None:
        """Have another worker take the place of one that asks for it."""
        if not self._is_draining and worker.state is State.READY:
            _log.info("worker %d was sent SIGTERM: another takes its place, then it drains", worker.pid)
            worker.is_leaving.set()

    def _retire(self, worker: WorkerProcess) -> None:
        """Drain one worker, then stop it: others accept the connections that wait."""
        if not worker.is_alive:
            # Another may have its row by now.
            return
        if worker.state is State.STARTING:
            self._stop(worker)
        elif worker.state is State.READY:
            self._begin_drain(worker, Queue.LEFT)
            worker.is_leaving.set()

    def _begin_drain(self, worker: WorkerProcess, queue: Queue) -> None:
        worker.state = State.DRAINING
        # The others do not wait for it to accept connections.
        self._table.set_ready(worker.row, is_ready=False)
        worker.channel.send(Kind.DRAIN, queue)

    def _record_drained(self, worker: WorkerProcess, exchanges_left: int) -> None:
        worker.exchanges_left = exchanges_left
        worker.is_drained.set()
        if worker.is_leaving.is_set():
            self._stop(worker)

    def _stop(self, worker: WorkerProcess) -> None:
        if worker.state is not State.STOPPING:
            worker.state = State.STOPPING
            worker.stopped_at = time.monotonic()
            self._table.set_ready(worker.row, is_ready=False)
            worker.channel.send(Kind.STOP)

    async def _watch_workers(self) -> None:
        """Kill workers that are stuck."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            for worker in self.workers:
                self._watch(worker)

    def _watch(self, worker: WorkerProcess) -> None:
        if worker.state is State.STARTING:
            if worker.lived_seconds > _START_SECONDS:
                self._kill(worker, f"it did not start within {_START_SECONDS:g} s, so it got")
        elif worker.state is State.STOPPING:
            if time.monotonic() > worker.stopped_at + _STOP_SECONDS:
                self._kill(worker, f"it did not stop within {_STOP_SECONDS:g} s, so it got")
        else:
            missed = worker.count_missed(self._table.beat(worker.row))
            if missed == STUCK_BEATS:
                worker.last_words.hold()
                self._template.send_signal(worker.pid, DUMP_SIGNAL)
            elif missed > STUCK_BEATS:
                self._kill(worker, f"its event loop was stuck for {missed * BEAT_SECONDS:g} s, so it got")

    def _kill(self, worker: WorkerProcess, reason: str) -> None:
        worker.kill_reason = reason
        self._template.send_signal(worker.pid, signal.SIGKILL)

    def _keep(self, tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(self._report_bug)
        return task

    def _report_bug(self, task: asyncio.Task[None]) -> None:
        """Report a task that raised at once: without a place no worker is started, and nothing waits for one."""
        exc = None if task.cancelled() else task.exception()
        if exc is not None:
            _log.error("bug in %r of the workers", task.get_name(), exc_info=exc)
            self._report_failure(f"bug in {task.get_name()!r} of the workers: {exc!r}")


async def wait_first(*events: asyncio.Event) -> None:
    """Wait until one of these is set."""
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(event.wait()) for event in events]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()


def _record_failure(worker: WorkerProcess, reason: str) -> None:
    worker.failure = reason

"""The supervisor: has both ports, leads the workers, speaks for all of them, and never touches traffic.

Its loop must stay quick: it serves the ops port and the messages of every worker. What takes long is done in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from gateway.config import Config, ConfigError
from gateway.config.values import Address
from gateway.cores import count_workers
from gateway.errors import Fault
from gateway.listener import open_listener
from gateway.observe.log import LineStyle
from gateway.observe.stats import Stats
from gateway.ops import serve_ops
from gateway.server import Load, check_fixed, log_reload
from gateway.signals import Signals
from gateway.systemd import Notifier
from gateway.threads import Threads
from gateway.workers.channel import Kind
from gateway.workers.limits import GatewayLimits
from gateway.workers.pool import WorkerPool, wait_first
from gateway.workers.process import WorkerProcess
from gateway.workers.template import Template, name_process
from gateway.workers.view import WorkersView
from gateway.workers.worker import run_worker

_log = logging.getLogger("gateway")


def start_template(style: LineStyle) -> Template:
    """Start the process that workers are forked from; `style` is that of their log lines.

    Call it before plug-ins are loaded, and before there is a thread or an event loop.
    """
    return Template.start(partial(run_worker, style=style))


class Supervisor:
    """Runs the gateway with several workers."""

    def __init__(
        self,
        config: Config,
        template: Template,
        *,
        sockets: Mapping[str, socket.socket] = MappingProxyType({}),
        notifier: Notifier | None = None,
    ) -> None:
        """`sockets` are listening sockets by the config key whose address they replace."""
        self.stats = Stats(((route.name, route.upstream) for route in config.routes), config.upstreams)
        self.pool = WorkerPool(config, template)
        self._template = template
        self._notifier = notifier or Notifier("", None)
        self._sockets = sockets
        #: Called when another config is in force.
        self.on_config: list[Callable[[], None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reloading = asyncio.Lock()
        #: A config file on a disk that does not answer keeps no process.
        self._reload_thread = Threads("reload", 1)
        self._draining: asyncio.Task[None] | None = None
        #: From `start` on.
        self.limits: GatewayLimits[WorkerProcess]
        self.address: Address
        self.ops_address: Address

    @property
    def config(self) -> Config:
        """The config in force."""
        return self.pool.config

    async def run(self, load: Load, signals: Signals, on_started: Callable[[], None]) -> None:
        """Start, call `on_started`, and serve until SIGTERM or Ctrl-C; a second one ends the drain. SIGHUP reloads.

        Raises ListenError if a port is taken, StartError if a worker cannot start, and RuntimeError if the template
        has ended. Cancelling it stops the workers, too: during the start at once, then with a drain.
        """
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        await self.start()
        try:
            signals.deliver_stop(loop, stopping.set)
            on_started()
            self._log_processes()
            signals.deliver_hangup(loop, lambda: self._keep(self.reload(load), "reload"))
            await wait_first(stopping, self._template.ended)
            has_template = not self._template.ended.is_set()
        finally:
            signals.deliver_stop(loop, self._stop_now)
            await self.stop()
        if not has_template:
            raise RuntimeError("the template process has ended: no worker could be replaced any more")

    async def start(self) -> None:
        """Open both ports and start the workers. Raises ListenError, StartError; then nothing is left open."""
        name_process("gateway-supervi")
        async with contextlib.AsyncExitStack() as stack:
            self._template.listen()
            stack.callback(self._template.ignore)
            config = self.config
            self._limit(stack)
            self._view = WorkersView(self.stats, self.pool, self._template.pid, self.drain)
            stack.callback(self._view.close)
            self.on_config.insert(0, self._view.keep_series)
            self.ops_address = await serve_ops(stack, self._view, self._open(config.ops.listen, "ops.listen"))
            listener = self._open(config.listen, "listen")
            self.address = Address(*listener.getsockname()[:2])
            stack.push_async_callback(self.pool.end)
            await self.pool.start(listener, count_workers(config))
            self._stack = stack.pop_all()
        self.stats.record_config()
        self._keep(self._notifier.run(self._status), "service manager")

    def _limit(self, stack: contextlib.AsyncExitStack) -> None:
        """Keep the limits that hold over all workers."""
        self.limits = GatewayLimits[WorkerProcess](
            self.stats,
            lambda worker, messages: worker.channel.send(Kind.LEASE_GRANT, messages),
            lambda worker, health: worker.channel.send(Kind.HEALTH, health),
        )
        stack.push_async_callback(self.limits.close)
        self.limits.configure(self.config)
        self.pool.handlers[Kind.LEASE_REQUEST] = self.limits.receive
        self.pool.before_start.append(self.limits.add)
        self.pool.before_commit.append(self.limits.configure)
        self.pool.on_end.append(self.limits.remove)

    def drain(self) -> asyncio.Task[None]:
        """Begin to drain all workers, unless that was done before; return the task that does it."""
        if self._draining is None:
            self._view.is_draining = True
            self._draining = self._keep(self.pool.drain(), "drain")
            self._notifier.report_stopping(self._status())
        return self._draining

    async def stop(self) -> None:
        """Drain, stop the workers, and close everything."""
        await asyncio.wait({self.drain()})
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    def _stop_now(self) -> None:
        """End the drain: `stop` goes on with what comes after it."""
        self.drain().cancel()

    async def reload(self, load: Load) -> None:
        """Replace the config in all workers, or in none; the log says why."""
        async with self._reloading:
            self._notifier.report_reloading()
            problems = await self._try_reload(load)
            self.stats.reloads["failure" if problems else "success"] += 1
            self._notifier.report_ready(self._status())
            log_reload(problems)

    async def _try_reload(self, load: Load) -> list[str]:
        """Replace the config; return the reasons if it cannot be used."""
        try:
            config = await asyncio.wrap_future(self._reload_thread.submit(lambda: self._load_next(load)))
        except ConfigError as exc:
            return list(map(str, exc.problems))
        except (Fault, OSError) as exc:
            return [str(exc)]
        except Exception as exc:
            # A filter of a plug-in may raise anything.
            _log.exception("the config stays as it was: checking it failed")
            return [f"checking it failed: {exc!r}"]
        problems = await self.pool.replace_config(config)
        if not problems:
            self.stats.record_config()
            if self._draining is None:
                self.pool.set_count(count_workers(config))
            for call in self.on_config:
                call()
        return problems

    def _load_next(self, load: Load) -> Config:
        config = load()
        check_fixed(self.config, config)
        return config

    def _status(self) -> str:
        text = f"{len(self.pool.serving)} workers, {self.pool.transfer_count} transfers"
        return text if self._draining is None else f"draining, {text}"

    def _log_processes(self) -> None:
        workers = " ".join(str(worker.pid) for worker in self.pool.workers)
        _log.info("processes: supervisor %d, template %d, workers %s", os.getpid(), self._template.pid, workers)

    def _open(self, address: Address, key: str) -> socket.socket:
        return self._sockets.get(key) or open_listener(address, key)

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

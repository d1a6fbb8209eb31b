"""Compose, start, serve, reload, drain, stop.

`Gateway` is one configured gateway in a running loop. What happens to an exchange is in `handler`. With several
workers, each runs one with a `Shared` socket, and the supervisor has the ops port, the health checks and the service
manager; a reload is then made in two steps, so that it takes place in all or in none.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from gateway.aiohttp_seam import check_behaviour, check_names
from gateway.config import Config, ConfigError, Problem
from gateway.config.values import Address
from gateway.cores import count_workers
from gateway.downstream import TrafficServer
from gateway.downstream.acceptor import Acceptor, AcceptShare, half_of_descriptors
from gateway.downstream.access_log import Describe, RecordLine, describe_exchange
from gateway.drain import Queue, drain
from gateway.errors import Fault
from gateway.filters import FilterProblem
from gateway.garbage import collect_when_calm
from gateway.handler import ExchangeHandler
from gateway.listener import open_listener
from gateway.observe.stats import Stats
from gateway.ops import serve_ops
from gateway.process_view import ProcessView
from gateway.runtime import Prepared, Resources, Runtime, prepare
from gateway.sharing import SharedLimits
from gateway.signals import Signals
from gateway.storage import Disks, sweep
from gateway.systemd import Notifier
from gateway.threads import Threads
from gateway.transfer import Timers
from gateway.upstream import Resolver, UpstreamPool
from gateway.upstream.resolver import MAX_LOOKUPS

#: Limit for the removal of unfinished uploads from one directory.
_SWEEP_SECONDS: Final = 60.0
#: For what is left of a cut exchange to end.
_SHUTDOWN_SECONDS: Final = 1.0
#: A change that a reload refuses, of a key with others that it does not.
_CHANGES: Final = {"workers": " from or to 1"}
_MEND: Final = "restart it, or set the key back"
#: Reads the config anew. Raises ConfigError.
Load = Callable[[], Config]
_log = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True)
class Shared:
    """What a worker has in common with the others: the listening socket, of which it owns a descriptor, and limits."""

    sock: socket.socket
    share: AcceptShare
    limits: SharedLimits


class Gateway:
    """One gateway: both ports, its upstreams, its exchanges. `record` is called with the log line of every exchange."""

    def __init__(
        self,
        config: Config,
        record: RecordLine,
        *,
        sockets: Mapping[str, socket.socket] = MappingProxyType({}),
        notifier: Notifier | None = None,
        describe: Describe = describe_exchange,
        shared: Shared | None = None,
    ) -> None:
        """`describe` returns the log line of an exchange.

        `sockets` are listening sockets by the config key whose address they replace. With `shared` this is one of
        several workers: it has no ops port and checks no health.
        """
        check_names()
        self._sockets = {**sockets, "listen": shared.sock} if shared is not None else sockets
        self._shared = shared
        self._limits = shared.limits if shared is not None else None
        self._notifier = notifier or Notifier("", None)
        self._config = config
        self.stats = Stats(((route.name, route.upstream) for route in config.routes), config.upstreams)
        self._timers = Timers()
        scheme = b"https" if config.tls is not None else b"http"
        self._handler = ExchangeHandler(self.stats, self._timers, record, describe=describe, scheme=scheme)
        self._reloading = asyncio.Lock()
        #: A config file on a disk that does not answer keeps no process.
        self._reload_thread = Threads("reload", 1)
        self._tasks: set[asyncio.Task[Any]] = set()
        #: The task that checks the health of each upstream.
        self._health_tasks: dict[UpstreamPool, asyncio.Task[Any]] = {}
        #: Made by `prepare_reload`, not in force yet.
        self._next: Runtime | None = None
        #: Replaced, but not without exchanges yet.
        self._retired: list[Runtime] = []
        #: Set by the first that drains: a signal, or GET /drain.
        self._draining: asyncio.Task[None] | None = None
        self.address: Address
        self.ops_address: Address

    @property
    def exchange_count(self) -> int:
        """Exchanges in flight."""
        return self._handler.exchange_count

    @property
    def connection_count(self) -> int:
        """Connections of clients, those included that were accepted a moment ago or whose TLS handshake runs."""
        return self._acceptor.connection_count

    async def start(self) -> None:
        """Open both ports. Raises ListenError if one is taken, RuntimeError if aiohttp does not behave as verified.

        Then nothing is left open.
        """
        await check_behaviour()
        config = self._config
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._timers.close)
            disks = Disks()
            stack.callback(disks.close)
            names = Threads("name", MAX_LOOKUPS)
            # A lookup that is stuck does not keep the process.
            stack.callback(names.shutdown, wait=False, cancel_futures=True)
            self._resources = Resources(self.stats, self._timers, disks, Resolver(names), self._limits)
            self._runtime = self._handler.runtime = Runtime(prepare(config, self._limits), self._resources)
            self._runtime.activate()
            self.stats.record_config()
            stack.push_async_callback(self._close_runtimes)
            handler = self._handler
            self._traffic = TrafficServer(handler.handle, handler.refuse, self._timers.turns, take=handler.express.take)
            view = ProcessView(self._handler, self.stats, refresh=self.refresh_stats, drain=self.drain)
            stack.callback(view.close)
            if self._shared is None:
                self.ops_address = await serve_ops(stack, view, self._listener(config.ops.listen, "ops.listen"))
            stack.push_async_callback(self._traffic.shutdown, _SHUTDOWN_SECONDS)
            self._start_accepting(stack)
            self._stack = stack.pop_all()
        self._begin_work()
        view.has_started = True
        self._keep(self._notifier.run(self._status), "service manager")
        self._keep(self._handler.live.watch(), "live transfers")
        self._keep(collect_when_calm(lambda: self.connection_count), "garbage collection")

    def _start_accepting(self, stack: contextlib.AsyncExitStack) -> None:
        """Open the traffic port. Raises ListenError."""
        sock = self._listener(self._config.listen, "listen")
        stack.callback(sock.close)
        self._tls = self._runtime.tls
        if self._tls is not None:
            # Called for every handshake, with a name or without: the context in force takes over.
            self._tls.sni_callback = lambda connection, _name, _context: self._choose_context(connection)
        self._acceptor = Acceptor(
            sock,
            self._traffic,
            context=self._tls,
            turns=self._timers.turns,
            first_kept=half_of_descriptors(),
            open_connections=lambda: self._traffic.open_connections,
            max_connections=lambda: self._runtime.config.max_connections,
            make_room=self._traffic.make_room,
            share=self._shared.share if self._shared is not None else None,
        )
        self._traffic.on_connection_made = self._acceptor.connection_made
        self._traffic.on_connection_lost = self._acceptor.connection_closed
        stack.push_async_callback(self._acceptor.close)
        self.address = Address(*sock.getsockname()[:2])

    def drain(self, queue: Queue = Queue.ACCEPTED) -> asyncio.Task[None]:
        """Begin to drain, unless that was done before; return the task that does it.

        With `Queue.LEFT` other workers go on: there is no delay.
        """
        if self._draining is None:
            config = self._runtime.config
            work = drain(
                self._handler,
                self._traffic,
                self._acceptor,
                delay_seconds=config.drain_delay if queue is Queue.ACCEPTED else 0.0,
                timeout_seconds=config.drain_timeout,
                queue=queue,
            )
            self._draining = self._keep(work, "drain")
            self._notifier.report_stopping(self._status())
        return self._draining

    @property
    def exchanges(self) -> ExchangeHandler:
        """The exchanges under way, and those that failed."""
        return self._handler

    def refresh_stats(self) -> None:
        """Bring the numbers up to date that are not counted as it happens: before they are read by a scrape."""
        self._handler.live.charge_waits()
        active, open_count = self._handler.exchange_count, self._traffic.open_connections
        # An exchange may outlive its connection for a moment.
        self.stats.connections.update(active=active, idle=max(0, open_count - active))

    async def stop(self) -> None:
        """Drain, cut the exchanges that are left, and close everything."""
        await asyncio.wait({self.drain()})
        self._acceptor.stop()
        exchanges = self._handler.cancel_exchanges()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*exchanges, *self._tasks, return_exceptions=True)
        await self._stack.aclose()

    def stop_now(self) -> None:
        """End the drain: `stop` goes on with what comes after it."""
        self.drain().cancel()

    async def run(self, load: Load, signals: Signals, on_started: Callable[[], None]) -> None:
        """Start, call `on_started`, and serve until SIGTERM or Ctrl-C; a second one ends the drain. SIGHUP reloads.

        Raises what `start` raises. Cancelling it stops the gateway, too: during the start at once, then with a drain.
        """
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        await self.start()
        try:
            signals.deliver_stop(loop, stopping.set)
            on_started()
            signals.deliver_hangup(loop, lambda: self._keep(self.reload(load), "reload"))
            await stopping.wait()
        finally:
            signals.deliver_stop(loop, self.stop_now)
            await self.stop()

    async def reload(self, load: Load) -> None:
        """Replace the config; exchanges under way end with the one they began with.

        Where it cannot be used the one before stays, and the log says why.
        """
        async with self._reloading:
            self._notifier.report_reloading()
            problems = await self.prepare_reload(load)
            if not problems:
                self.commit_reload()
            self.stats.reloads["failure" if problems else "success"] += 1
            self._notifier.report_ready(self._status())
            log_reload(problems)

    async def prepare_reload(self, load: Load) -> list[str]:
        """Make what the next config needs, and change nothing that is in force; return why it cannot be used.

        Without a reason `commit_reload` or `abort_reload` is to follow.
        """
        try:
            prepared = await asyncio.wrap_future(self._reload_thread.submit(lambda: self._prepare_next(load)))
            self._next = Runtime(prepared, self._resources, self._runtime)
        except (ConfigError, FilterProblem, Fault, OSError) as exc:
            problems = [str(problem) for problem in (exc.problems if isinstance(exc, ConfigError) else (exc,))]
        except Exception as exc:
            # A filter of a plug-in may raise anything.
            _log.exception("the config stays as it was: applying it failed")
            problems = [f"applying it failed: {exc!r}"]
        else:
            return []
        self._drop_unused()
        return problems

    def commit_reload(self) -> None:
        """Put what `prepare_reload` made in force."""
        if self._next is None:
            return
        before, self._runtime, self._next = self._runtime, self._next, None
        self._handler.runtime = self._runtime
        self._runtime.activate()
        # A context of its own: one in use would be left with half of a pair that does not fit.
        self._tls = self._runtime.tls
        self.stats.record_config()
        self._retired.append(before)
        self._keep(self._retire(before), "retire")
        self._begin_work()

    def abort_reload(self) -> None:
        """Drop what `prepare_reload` made."""
        if self._next is not None:
            unused, self._next = self._next, None
            self._retired.append(unused)
            self._keep(self._retire(unused), "retire")

    def _choose_context(self, connection: ssl.SSLObject) -> None:
        if self._tls is not None:
            connection.context = self._tls

    def _prepare_next(self, load: Load) -> Prepared:
        """Read the next config, in a thread. Raises ConfigError, FilterProblem, OSError; a plug-in anything."""
        config = load()
        check_fixed(self._config, config)
        return prepare(config, self._limits)

    async def _retire(self, runtime: Runtime) -> None:
        """Close a replaced runtime after its last exchange."""
        await runtime.exchanges.wait_empty()
        # First of all: another that ends while this one closes must not leave what they share to this one.
        self._retired.remove(runtime)
        others = (self._runtime, *self._retired)
        await runtime.close(but={upstream for other in others for upstream in other.upstreams.values()})
        self._drop_unused()

    def _runtimes(self) -> list[Runtime]:
        """Return every runtime that is in use or may be."""
        return [*self._retired, self._runtime, *([self._next] if self._next is not None else ())]

    def _drop_unused(self) -> None:
        """Drop state and counts of routes and upstreams that no runtime has any more."""
        configs = [runtime.config for runtime in self._runtimes()]
        upstreams = {name for config in configs for name in config.upstreams}
        self.stats.keep({(route.name, route.upstream) for config in configs for route in config.routes}, upstreams)
        for name in self._resources.upstreams.keys() - upstreams:
            self._resources.upstreams.pop(name).close()

    async def _close_runtimes(self) -> None:
        for runtime in self._runtimes():
            await runtime.close()
        for upstream in self._resources.upstreams.values():
            upstream.close()

    def _begin_work(self) -> None:
        """Check the health of the upstreams in use, and of no others; remove unfinished uploads of killed gateways."""
        upstreams = set(self._runtime.upstreams.values()) if self._shared is None else set()
        for upstream in self._health_tasks.keys() - upstreams:
            self._health_tasks.pop(upstream).cancel()
        for upstream in upstreams - self._health_tasks.keys():
            self._health_tasks[upstream] = self._keep(upstream.watch_health(), f"health of {upstream.name}")
        self._keep(self._sweep(), "sweep")

    async def _sweep(self) -> None:
        """Remove unfinished files of killed gateways. A directory that cannot be read is reported by its uploads."""
        for directory in {name for route in self._runtime.config.routes if (name := route.written_directory)}:
            with contextlib.suppress(Fault):
                disk_threads = self._resources.disks.of(directory, _SWEEP_SECONDS)
                count = await disk_threads.run(functools.partial(sweep, Path(directory)))
                _log.debug("unfinished uploads removed: %d", count)

    def _status(self) -> str:
        in_flight = sum(route.in_flight for route in self.stats.routes.values())
        return f"{'serving' if self._draining is None else 'draining'}, exchanges in flight: {in_flight}"

    def _listener(self, address: Address, key: str) -> socket.socket:
        return self._sockets.get(key) or open_listener(address, key)

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def log_reload(problems: list[str]) -> None:
    """Log the end of a reload: `problems` are why the config cannot be used."""
    for problem in problems:
        _log.error("the config stays as it was: %s", problem)
    if not problems:
        _log.info("the config was replaced")


def check_fixed(before: Config, after: Config) -> None:
    """Raise ConfigError for keys that only a restart can change: what was opened at the start depends on them."""
    fixed = {
        "listen": (before.listen, after.listen),
        "ops.listen": (before.ops.listen, after.ops.listen),
        "log.format": (before.log.format, after.log.format),
        "tls": (before.tls is not None, after.tls is not None),
        "workers": (count_workers(before) == 1, count_workers(after) == 1),
    }
    problems = [
        Problem("reload", 0, key, f"cannot change{_CHANGES.get(key, '')} while the gateway runs: {_MEND}")
        for key, (old, new) in fixed.items()
        if old != new
    ]
    if problems:
        raise ConfigError(problems)

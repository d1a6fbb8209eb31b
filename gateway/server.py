"""Compose, start, serve, reload, drain, stop.

`Gateway` is one configured gateway in a running loop. `_handle` is the one place where exchanges begin and end:
every fault becomes an answer or a cut there, every exchange leaves one log line and its counts, and a bug becomes a
500 or a cut, never a body that looks whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from gateway.actions import choose_route
from gateway.config import Config, ConfigError, Problem
from gateway.config.check import server_context
from gateway.config.values import Address
from gateway.downstream import Answer, Exchange, TrafficServer, check_aiohttp
from gateway.downstream.access_log import Note, describe_exchange
from gateway.downstream.exchange import Named
from gateway.errors import Fault, FaultKind
from gateway.observe.stats import Tally, method_label
from gateway.ops.app import OpsApp
from gateway.runtime import Serving, Shared
from gateway.storage import DiskWorkers, sweep
from gateway.transfer.timers import Timers
from gateway.upstream import Service
from gateway.upstream.capacity import Drain

_BACKLOG: Final = 1024
#: A peer that acknowledges nothing for this long is gone: the net below every timeout of ours.
_USER_TIMEOUT_MILLISECONDS: Final = 120_000
#: Reads the config anew. Raises ConfigError.
Load = Callable[[], Config]
_log = logging.getLogger("gateway")


class Gateway:
    """One gateway: both ports, its upstreams, its exchanges. `note` is told of every exchange at its end."""

    def __init__(self, config: Config, note: Note) -> None:
        check_aiohttp()
        self._note = note
        self._scheme = b"https" if config.tls is not None else b"http"
        self._config = config
        routes = ((route.name, route.upstream) for route in config.routes)
        self.tally = Tally(routes, config.upstreams)
        self._no_route = self.tally.routes[Tally.NO_ROUTE]
        self._timers = Timers()
        self._drain = Drain()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._exchanges: set[asyncio.Task[Any]] = set()
        #: What watches the health of each service.
        self._watches: dict[Service, asyncio.Task[Any]] = {}
        #: Replaced, but not without exchanges yet.
        self._retired: list[Serving] = []
        self._has_started = False
        self.address: Address
        self.ops_address: Address

    async def start(self) -> None:
        """Open both ports. Raises OSError if one is taken; then nothing is left open."""
        config = self._config
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._timers.close)
            workers = DiskWorkers()
            stack.callback(workers.close)
            threads = ThreadPoolExecutor(os.cpu_count() or 1, "filter")
            stack.callback(threads.shutdown)
            self._shared = Shared(self.tally, self._timers, workers, threads)
            self._serving = Serving(config, self._shared)
            stack.push_async_callback(self._close_servings)
            ops = OpsApp(self.tally, self._reasons)
            stack.callback(ops.close)
            self._ops_runner = web.AppRunner(ops.make(), access_log=None)
            self.ops_address = await _open(stack, self._ops_runner, config.ops.listen)
            self._traffic = TrafficServer(self._handle, self._refuse_unread)
            runner = web.ServerRunner(self._traffic, handle_signals=False, shutdown_timeout=1.0)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            sock = _listen(config.listen)
            tls = config.tls
            self._tls = server_context(tls.certificate, tls.key) if tls is not None else None
            if self._tls is not None:
                # Called for every handshake, with a name or without: the context in force takes over.
                self._tls.sni_callback = lambda connection, _name, _context: self._choose_context(connection)
            self._site = web.SockSite(runner, sock, backlog=_BACKLOG, ssl_context=self._tls)
            await self._site.start()
            self.address = Address(config.listen.host, sock.getsockname()[1])
            self._stack = stack.pop_all()
        self._begin_work()
        self._has_started = True

    async def stop(self) -> None:
        """Drain and close: accept nobody, let exchanges end within drain_timeout, cut the rest, close everything."""
        self._drain.begin()
        await self._site.stop()
        # Idle kept connections close now; those in flight close behind their answers.
        for connection in self._traffic.connections:
            if connection._current_request is None:
                connection.force_close()
        seconds = self._serving.config.drain_timeout
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                await self._drain.wait_empty()
        for task in (*self._exchanges, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._exchanges, *self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def run(self, load: Load | None) -> None:
        """Serve until SIGTERM or Ctrl-C; a second one ends the drain. SIGHUP replaces the config by what `load` gives.

        Without that it stops, too: whoever plays with the demo has closed the terminal.
        """
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, stopping.set)
        if load is not None:
            loop.add_signal_handler(signal.SIGHUP, lambda: self._keep(self.reload(load), "reload"))
        await stopping.wait()
        stop = asyncio.create_task(self.stop(), name="stop")
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._hurry)
        await stop

    async def reload(self, load: Load) -> None:
        """Put another config in force; exchanges under way end with the one they began with.

        Where it cannot be used the one before stays, and the log says why.
        """
        async with self._reloading:
            try:
                config = await asyncio.get_running_loop().run_in_executor(None, load)
                _check_fixed(self._config, config)
                tls = config.tls
                # A context of its own: one in use would be left with half of a pair that does not fit.
                context = server_context(tls.certificate, tls.key) if tls is not None else None
                self._replace(config)
                self._tls = context
            except (ConfigError, OSError) as exc:
                self.tally.reloads["failure"] += 1
                for problem in exc.problems if isinstance(exc, ConfigError) else (exc,):
                    _log.error("the config stays as it was: %s", problem)
            else:
                self.tally.reloads["success"] += 1
                _log.info("the config was replaced")

    def _choose_context(self, connection: ssl.SSLObject) -> None:
        if self._tls is not None:
            connection.context = self._tls

    def _replace(self, config: Config) -> None:
        before = self._serving
        self.tally.adopt(((route.name, route.upstream) for route in config.routes), config.upstreams)
        self._serving = Serving(config, self._shared, before)
        self._retired.append(before)
        self._keep(self._retire(before), "retire")
        self._begin_work()

    async def _retire(self, serving: Serving) -> None:
        """Close what was replaced once nobody uses it any more."""
        await serving.exchanges.wait_empty()
        others = [self._serving, *(other for other in self._retired if other is not serving)]
        await serving.close(but={service for other in others for service in other.services.values()})
        self._retired.remove(serving)

    async def _close_servings(self) -> None:
        for serving in (*self._retired, self._serving):
            await serving.close()

    def _begin_work(self) -> None:
        """Watch the services in force, and no others; clean up where their routes write."""
        services = set(self._serving.services.values())
        for service in self._watches.keys() - services:
            self._watches.pop(service).cancel()
        for service in services - self._watches.keys():
            self._watches[service] = self._keep(service.watch_health(), f"health of {service.name}")
        self._keep(self._sweep(), "sweep")

    def _hurry(self) -> None:
        for task in self._exchanges:
            task.cancel()

    async def _sweep(self) -> None:
        """Remove what uploads left that were killed; a directory that cannot be read is for its uploads to tell of."""
        for directory in {Path(name) for route in self._serving.config.routes if (name := route.written_directory)}:
            with contextlib.suppress(Fault):
                count = await self._shared.workers.run(functools.partial(sweep, directory))
                _log.debug("unfinished uploads removed: %d", count)

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _reasons(self) -> list[str]:
        reasons = []
        if not self._has_started:
            reasons.append("starting")
        if self._drain.is_draining:
            reasons.append("draining")
        reasons += [
            f"upstream {service.name}: no healthy endpoint"
            for service in self._serving.services.values()
            if not service.is_available
        ]
        return reasons

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Run one exchange from head to end. Never raises but for cancellation."""
        exchange = self._make_exchange(request)
        task = asyncio.current_task()
        if task is not None:
            self._exchanges.add(task)
        serving = self._serving
        with self._drain, serving.exchanges:
            try:
                await self._run_exchange(exchange, serving)
                await exchange.linger()
            finally:
                if task is not None:
                    self._exchanges.discard(task)
        return exchange.answer or Answer.small(500, (), b"", is_last=True)

    def _make_exchange(self, request: web.BaseRequest) -> Exchange:
        trusted = self._serving.config.trusted_proxies
        return Exchange(request, self._no_route, self._timers, trusted=trusted, scheme=self._scheme)

    async def _run_exchange(self, exchange: Exchange, serving: Serving) -> None:
        try:
            try:
                await self._find_and_act(exchange, serving)
            except Fault as fault:
                await exchange.fail(fault)
            except asyncio.CancelledError:
                if not exchange.is_delivered:
                    await exchange.fail(exchange.why_cancelled())
                raise
            except Exception:
                # The one place where a bug becomes an answer or a cut.
                _log.exception("bug in exchange %s", exchange.trace.request_id.decode("latin-1"))
                await exchange.fail(Fault(FaultKind.BUG, "The gateway failed; its log has the reason."))
        finally:
            self._record(exchange)

    async def _find_and_act(self, exchange: Exchange, serving: Serving) -> None:
        exchange.is_draining = self._drain.is_draining
        target = exchange.check_head()
        if target.path == "*":
            # OPTIONS *: asks about the gateway itself (RFC 9110 section 9.3.7).
            await exchange.reply(204, (), b"")
            return
        candidates = serving.table.find(
            host=target.host, path=target.path, method=exchange.method, field=exchange.fields.joined
        )
        if self._drain.is_draining:
            exchange.named = Named(candidates[0].route, self.tally.routes[candidates[0].route.name])
            raise Fault(FaultKind.DRAINING, "The gateway is stopping: try another.", retry_after_seconds=1)
        found = await choose_route(exchange, candidates)
        tally = self.tally.routes[found.route.name]
        exchange.named = Named(found.route, tally)
        tally.in_flight += 1
        try:
            await serving.actions[found.route.name](exchange, found)
        finally:
            tally.in_flight -= 1

    def _record(self, exchange: Exchange) -> None:
        tally = exchange.named.tally
        seconds = time.monotonic() - exchange.started
        self._note(describe_exchange(exchange, seconds))
        tally.requests[method_label(exchange.method), exchange.status] += 1
        tally.durations.observe(seconds)
        if exchange.first_byte_seconds is not None:
            tally.first_bytes.observe(exchange.first_byte_seconds)

    def _refuse_unread(self, request: web.BaseRequest, fault: Fault) -> Answer:
        """Refuse a request whose head could not be read: nothing of it is believed."""
        exchange = self._make_exchange(request)
        exchange.fault = fault
        exchange.answer = exchange.refusal(fault)
        self._record(exchange)
        return exchange.answer


def _check_fixed(before: Config, after: Config) -> None:
    """Raise ConfigError for what only a restart can change: sockets are open, connections expect TLS or not."""
    fixed = {
        "listen": (before.listen, after.listen),
        "ops.listen": (before.ops.listen, after.ops.listen),
        "tls": (before.tls is not None, after.tls is not None),
    }
    problems = [
        Problem("reload", 0, key, "cannot change while the gateway runs: restart it, or set the key back")
        for key, (old, new) in fixed.items()
        if old != new
    ]
    if problems:
        raise ConfigError(problems)


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Accepted sockets inherit it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MILLISECONDS)
        sock.bind((address.host, address.port))
    except BaseException:
        sock.close()
        raise
    return sock


async def _open(stack: contextlib.AsyncExitStack, runner: web.AppRunner, address: Address) -> Address:
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    sock = _listen(address)
    await web.SockSite(runner, sock).start()
    return Address(address.host, sock.getsockname()[1])

"""Compose, start, serve, reload, drain, stop.

`Gateway` is one configured gateway in a running loop. `_run_exchange` is the one place where exchanges end: there a
fault becomes a response or a cut, every exchange gets one log line and is counted, and a bug becomes a 500 or a cut,
never a body that looks complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
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

from gateway.actions import match_form_route
from gateway.aiohttp_seam import check_behaviour, check_names
from gateway.config import Config, ConfigError, Problem
from gateway.config.check import server_context
from gateway.config.values import Address
from gateway.downstream import ClientResponse, Exchange, TrafficServer
from gateway.downstream.access_log import RecordLine, describe_exchange
from gateway.errors import Fault, FaultKind
from gateway.observe.stats import Stats, method_label
from gateway.ops.app import OpsApp
from gateway.runtime import InFlightCounter, Resources, Runtime
from gateway.storage import DiskThreads, sweep
from gateway.transfer import Timers
from gateway.upstream import UpstreamPool

_BACKLOG: Final = 1024
#: A peer that acknowledges nothing for this long is gone (TCP_USER_TIMEOUT), where no other timeout ends it.
_USER_TIMEOUT_MILLISECONDS: Final = 120_000
#: Reads the config anew. Raises ConfigError.
Load = Callable[[], Config]
_log = logging.getLogger("gateway")


class Gateway:
    """One gateway: both ports, its upstreams, its exchanges. `record` is called with the log line of every exchange."""

    def __init__(self, config: Config, record: RecordLine) -> None:
        check_names()
        self._record_line = record
        self._scheme = b"https" if config.tls is not None else b"http"
        self._config = config
        routes = ((route.name, route.upstream) for route in config.routes)
        self.stats = Stats(routes, config.upstreams)
        self._no_route = self.stats.routes[Stats.NO_ROUTE]
        self._timers = Timers()
        self._in_flight = InFlightCounter()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._exchanges: set[asyncio.Task[Any]] = set()
        #: The task that checks the health of each upstream.
        self._health_tasks: dict[UpstreamPool, asyncio.Task[Any]] = {}
        #: Replaced, but not without exchanges yet.
        self._retired: list[Runtime] = []
        self._has_started = False
        self.address: Address
        self.ops_address: Address

    async def start(self) -> None:
        """Open both ports. Raises OSError if one is taken, RuntimeError if aiohttp does not behave as verified.

        Then nothing is left open.
        """
        await check_behaviour()
        config = self._config
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._timers.close)
            disk_threads = DiskThreads()
            stack.callback(disk_threads.close)
            threads = ThreadPoolExecutor(os.cpu_count() or 1, "filter")
            stack.callback(threads.shutdown)
            self._resources = Resources(self.stats, self._timers, disk_threads, threads)
            self._runtime = Runtime(config, self._resources)
            stack.push_async_callback(self._close_runtimes)
            ops = OpsApp(self.stats, self._reasons)
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
        """Drain and close: accept nothing, wait up to drain_timeout for exchanges, cut the rest, close all."""
        self._in_flight.begin()
        await self._site.stop()
        # Idle kept connections close now, the others after their response.
        self._traffic.close_idle_connections()
        seconds = self._runtime.config.drain_timeout
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._in_flight.wait_empty()
        for task in (*self._exchanges, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._exchanges, *self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def run(self, load: Load | None) -> None:
        """Serve until SIGTERM or Ctrl-C; a second one ends the drain. SIGHUP reloads the config.

        Without `load`, SIGHUP stops as well: the demo was started in a terminal that was closed.
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
            loop.add_signal_handler(number, self._cancel_exchanges)
        await stop

    async def reload(self, load: Load) -> None:
        """Replace the config; exchanges under way end with the one they began with.

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
                self.stats.reloads["failure"] += 1
                for problem in exc.problems if isinstance(exc, ConfigError) else (exc,):
                    _log.error("the config stays as it was: %s", problem)
            else:
                self.stats.reloads["success"] += 1
                _log.info("the config was replaced")

    def _choose_context(self, connection: ssl.SSLObject) -> None:
        if self._tls is not None:
            connection.context = self._tls

    def _replace(self, config: Config) -> None:
        before = self._runtime
        self.stats.adopt(((route.name, route.upstream) for route in config.routes), config.upstreams)
        self._runtime = Runtime(config, self._resources, before)
        self._retired.append(before)
        self._keep(self._retire(before), "retire")
        self._begin_work()

    async def _retire(self, runtime: Runtime) -> None:
        """Close a replaced runtime after its last exchange."""
        await runtime.exchanges.wait_empty()
        others = [self._runtime, *(other for other in self._retired if other is not runtime)]
        await runtime.close(but={upstream for other in others for upstream in other.upstreams.values()})
        self._retired.remove(runtime)

    async def _close_runtimes(self) -> None:
        for runtime in (*self._retired, self._runtime):
            await runtime.close()

    def _begin_work(self) -> None:
        """Check the health of the upstreams in use, and of no others; remove unfinished uploads of killed gateways."""
        upstreams = set(self._runtime.upstreams.values())
        for upstream in self._health_tasks.keys() - upstreams:
            self._health_tasks.pop(upstream).cancel()
        for upstream in upstreams - self._health_tasks.keys():
            self._health_tasks[upstream] = self._keep(upstream.watch_health(), f"health of {upstream.name}")
        self._keep(self._sweep(), "sweep")

    def _cancel_exchanges(self) -> None:
        for task in self._exchanges:
            task.cancel()

    async def _sweep(self) -> None:
        """Remove unfinished files of killed gateways. A directory that cannot be read is reported by its uploads."""
        for directory in {Path(name) for route in self._runtime.config.routes if (name := route.written_directory)}:
            with contextlib.suppress(Fault):
                count = await self._resources.disk_threads.run(functools.partial(sweep, directory))
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
        if self._in_flight.is_draining:
            reasons.append("draining")
        reasons += [
            f"upstream {upstream.name}: no healthy endpoint"
            for upstream in self._runtime.upstreams.values()
            if not upstream.is_available
        ]
        return reasons

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Run one exchange from its head to its end. Raises nothing but CancelledError."""
        exchange = self._make_exchange(request)
        task = asyncio.current_task()
        if task is not None:
            self._exchanges.add(task)
        runtime = self._runtime
        with self._in_flight, runtime.exchanges:
            try:
                await self._run_exchange(exchange, runtime)
                await exchange.discard_request_body()
            finally:
                if task is not None:
                    self._exchanges.discard(task)
        return exchange.response or ClientResponse.small(500, (), b"", is_last=True)

    def _make_exchange(self, request: web.BaseRequest) -> Exchange:
        trusted = self._runtime.config.trusted_proxies
        return Exchange(request, self._no_route, self._timers, trusted=trusted, scheme=self._scheme)

    async def _run_exchange(self, exchange: Exchange, runtime: Runtime) -> None:
        try:
            try:
                await self._find_and_act(exchange, runtime)
            except Fault as fault:
                await exchange.fail(fault)
            except asyncio.CancelledError:
                if not exchange.is_delivered:
                    await exchange.fail(exchange.why_cancelled())
                raise
            except Exception:
                # The one place where a bug becomes a response or a cut.
                _log.exception("bug in exchange %s", exchange.trace.request_id.decode("latin-1"))
                await exchange.fail(Fault(FaultKind.BUG, "The gateway failed; its log has the reason."))
        finally:
            self._record(exchange)

    async def _find_and_act(self, exchange: Exchange, runtime: Runtime) -> None:
        exchange.is_draining = self._in_flight.is_draining
        target = exchange.check_head()
        if target.path == "*":
            # OPTIONS *: asks about the gateway itself (RFC 9110 section 9.3.7).
            await exchange.reply(204, (), b"")
            return
        candidates = runtime.table.find(
            host=target.host, path=target.path, method=exchange.method, header=exchange.headers.joined
        )
        if self._in_flight.is_draining:
            exchange.route = candidates[0].route
            exchange.stats = self.stats.routes[exchange.route.name]
            raise Fault(FaultKind.DRAINING, "The gateway is stopping: try another.", retry_after_seconds=1)
        matched = await match_form_route(exchange, candidates)
        stats = self.stats.routes[matched.route.name]
        exchange.route, exchange.stats = matched.route, stats
        stats.in_flight += 1
        try:
            await runtime.actions[matched.route.name](exchange, matched)
        finally:
            stats.in_flight -= 1

    def _record(self, exchange: Exchange) -> None:
        stats = exchange.stats
        seconds = time.monotonic() - exchange.started
        self._record_line(describe_exchange(exchange, seconds))
        stats.requests[method_label(exchange.method), exchange.status] += 1
        stats.durations.observe(seconds)
        if exchange.first_byte_seconds is not None:
            stats.first_bytes.observe(exchange.first_byte_seconds)

    def _refuse_unread(self, request: web.BaseRequest, fault: Fault) -> ClientResponse:
        """Refuse a request whose head could not be parsed: nothing in it is used."""
        exchange = self._make_exchange(request)
        exchange.fault = fault
        exchange.response = exchange.refusal(fault)
        self._record(exchange)
        return exchange.response


def _check_fixed(before: Config, after: Config) -> None:
    """Raise ConfigError for keys that only a restart can change: the sockets are open, with TLS or without."""
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

"""The command `gateway run`: load the config, start the log, serve, drain.

No traceback is printed for an error of the user, such as a port in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway import __version__, memory
from gateway.aiohttp_seam import load_certificates, make_loop  # first, see `aiohttp_seam.certificates`
from gateway.config import Config, ConfigError, Problem, Route, load_config
from gateway.config.contradictions import find_contradictions
from gateway.config.values import Address
from gateway.cores import count_workers
from gateway.downstream.acceptor import raise_descriptor_limit
from gateway.downstream.text_line import choose_describe
from gateway.filters import FilterContext, FilterProblem, make_filters
from gateway.http.routing import RouteTable, describe_match
from gateway.listener import open_listener
from gateway.observe.log import choose_style, start_logging
from gateway.runtime import opens_tls
from gateway.server import Gateway, Load
from gateway.signals import Signals
from gateway.systemd import Notifier, take_sockets
from gateway.threads import Threads

if TYPE_CHECKING:
    from gateway.workers.supervisor import Supervisor
    from gateway.workers.template import Template

_FAILED: Final = 1


def run(path: Path, signals: Signals, *, is_demo: bool) -> int:
    """Run the gateway until a signal ends it; return the exit code. Raises ConfigError."""
    config = load_config(path)
    raise_descriptor_limit()
    # Workers are forked from what is here now: no plug-in, no thread, no loop.
    template = _start_template(config)
    try:
        _check_filters(config, path)
        return _run_checked(config, path, signals, template, is_demo=is_demo)
    finally:
        if template is not None:
            template.close()


def load_and_check(path: Path) -> Config:
    """Load a config and create its filters, to check the options of plug-ins. Raises ConfigError."""
    config = load_config(path)
    _check_filters(config, path)
    return config


def find_warnings(config: Config) -> Iterator[str]:
    """Yield a line for each key of a valid config that has no effect."""
    for key, message in find_contradictions(config):
        yield f"{key}: warning: {message}"


def _check_filters(config: Config, path: Path) -> None:
    """Create the filters of a config, to check the options of plug-ins. Raises ConfigError."""
    problems = []
    threads = Threads("filter", 1)
    for route in config.routes:
        try:
            make_filters(route, FilterContext(route.name, threads))
        except FilterProblem as problem:
            problems.append(Problem(str(path), 0, "", config.hide(str(problem))))
    if problems:
        raise ConfigError(problems)


def _load_and_warn(path: Path) -> Config:
    """Load a config, see `load_and_check`, and log its warnings."""
    config = load_and_check(path)
    _log_warnings(config)
    return config


def _log_warnings(config: Config) -> None:
    for warning in find_warnings(config):
        logging.getLogger("gateway").warning("%s", warning)


def _start_template(config: Config) -> Template | None:
    """Return the process that workers are forked from; None for a single process, which imports nothing of this."""
    if count_workers(config) == 1:
        return None
    if opens_tls(config):
        # Once for all workers.
        load_certificates()
    from gateway.workers.supervisor import start_template  # noqa: PLC0415 (see above)

    return start_template(choose_style(config.log.format, os.environ))


def _run_checked(config: Config, path: Path, signals: Signals, template: Template | None, *, is_demo: bool) -> int:
    try:
        sockets = take_sockets(os.environ)
    except ValueError as exc:
        print(f"gateway: cannot start: {exc}", file=sys.stderr)  # noqa: T201 (standard output is the log)
        return _FAILED
    notifier = Notifier.from_environment(os.environ)
    style = choose_style(config.log.format, os.environ)
    writer = start_logging(style, None if template is None else template.output_lock)
    _log_warnings(config)
    try:
        gateway: Gateway | Supervisor
        if template is None:
            describe = choose_describe(style)
            gateway = Gateway(config, writer.add_line, sockets=sockets, notifier=notifier, describe=describe)
        else:
            from gateway.workers.supervisor import Supervisor  # noqa: PLC0415 (see above)

            gateway = Supervisor(config, template, sockets=sockets, notifier=notifier)
        gateway.stats.dropped_log_lines = lambda: writer.dropped_lines
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(_serve(config, gateway, lambda: _load_and_warn(path), signals, is_demo=is_demo))
    except asyncio.CancelledError:
        # A signal during the start: everything that was opened is closed.
        return 0
    except (OSError, RuntimeError) as exc:
        # For example a port in use, or an aiohttp without its C parser.
        print(f"gateway: cannot start: {exc}", file=sys.stderr)  # noqa: T201 (standard output is the log)
        return _FAILED
    finally:
        notifier.close()
        writer.stop()
    return 0


async def _serve(config: Config, gateway: Gateway | Supervisor, load: Load, signals: Signals, *, is_demo: bool) -> None:
    def announce() -> None:
        logging.getLogger("gateway").info("listening on %s, ops on %s", gateway.address, gateway.ops_address)
        if is_demo:
            print("\n".join(_banner(config, gateway)), file=sys.stderr, flush=True)  # noqa: T201 (for the terminal)
        memory.tune_memory()

    task = asyncio.current_task()
    if task is not None:
        signals.deliver_stop(asyncio.get_running_loop(), task.cancel)
    if is_demo:
        signals.follow_terminal()
    with _demo_upstream(config) if is_demo else contextlib.nullcontext():
        await gateway.run(load, signals, announce)


def _banner(config: Config, gateway: Gateway | Supervisor) -> Iterator[str]:
    base = f"{'https' if config.tls else 'http'}://{gateway.address}"
    yield f"\n  gateway {__version__} at {base}, live page and metrics at http://{gateway.ops_address}/\n"
    for route in RouteTable(config.routes).routes:
        yield f"  {route.name:<12} {route.action_name:<8} {describe_match(route, config.hide)}"
    yield "\n  try:"
    for route in config.routes:
        yield from (f"    {line}" for line in _curl_lines(route, base))
    yield ""


def _curl_lines(route: Route, base: str) -> Iterator[str]:
    """Yield a curl command for the route; none for a regex, for which no path can be given.

    They need no file and write none, so that they work in any directory.
    """
    path = route.match.path or route.match.prefix
    if path is None:
        return
    url = base + path
    match route.action_name:
        case "forward" | "store":
            yield f"curl -F 'file=hello;filename=hello.txt' {url}"
        case "split":
            yield f"curl -F 'file=hello;filename=hello.txt' -F 'file=world;filename=world.txt' {url}"
        case "files":
            yield f"curl {url.rstrip('/')}/hello.txt"
        case _:
            prefix = route.fetch.allow[0] if route.fetch else ""
            # The demo upstream responds to /bytes/N with N bytes.
            rest = "1000 | wc -c" if prefix.endswith("/bytes/") else "..."
            yield f"curl {url.rstrip('/')}/{prefix}{rest}"


@contextlib.contextmanager
def _demo_upstream(config: Config) -> Iterator[None]:
    """Run the demo upstream as a child process, on the first endpoint of the first upstream; stop it at the end.

    Its socket is opened here: a taken port ends the start, and requests that come before the child serves wait.
    """
    name, endpoint = next(((name, upstream.endpoints[0]) for name, upstream in config.upstreams.items()), ("", None))
    if endpoint is None:
        yield
        return
    with open_listener(Address(endpoint.host, endpoint.port), f"upstreams.{name}.endpoints[0]") as sock:
        command = [sys.executable, "-m", "gateway.demo", str(endpoint.port), "--socket", str(sock.fileno())]
        process = subprocess.Popen(command, start_new_session=True, pass_fds=[sock.fileno()])
    try:
        yield
    finally:
        process.terminate()
        process.wait()

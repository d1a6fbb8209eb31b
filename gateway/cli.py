"""The `gateway` command. Exit codes: 0 success, 2 wrong usage or config, 1 other errors.

No traceback is printed for an error of the user, such as a port in use.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway import __version__, memory
from gateway.aiohttp_seam import load_certificates  # the first import of aiohttp: see `aiohttp_seam.certificates`
from gateway.config import Config, ConfigError, Problem, Route, json_schema, load_config
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

_BAD_CONFIG: Final = 2
_FAILED: Final = 1


def main(arguments: Sequence[str] | None = None, signals: Signals | None = None) -> int:
    """Run the command and return its exit code. `arguments` replaces sys.argv."""
    options = _parser().parse_args(arguments)
    try:
        match options.command:
            case "run":
                return _run(options.config, signals or Signals(), is_demo=options.demo)
            case "check":
                for warning in _warnings(_load(options.config)):
                    print(f"{options.config}: {warning}", file=sys.stderr)  # noqa: T201 (a command's output)
                print(f"{options.config}: no problems found")  # noqa: T201 (a command's output)
            case "routes":
                _print_routes(load_config(options.config))
            case "top":
                return _top(options.ops, is_once=options.once or options.json, is_json=options.json)
            case _:
                print(json.dumps(json_schema(), indent=2))  # noqa: T201 (a command's output)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)  # noqa: T201 (a command's output)
        return _BAD_CONFIG
    return 0


def _load(path: Path) -> Config:
    """Load a config and create its filters, to check the options of plug-ins. Raises ConfigError."""
    config = load_config(path)
    _check_filters(config, path)
    return config


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
    """Load a config, see `_load`, and log its warnings."""
    config = _load(path)
    _log_warnings(config)
    return config


def _log_warnings(config: Config) -> None:
    for warning in _warnings(config):
        logging.getLogger("gateway").warning("%s", warning)


def _warnings(config: Config) -> Iterator[str]:
    for key, message in find_contradictions(config):
        yield f"{key}: warning: {message}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gateway", description="A streaming reverse proxy for large files, in front of ML services."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "run": "run the gateway; SIGTERM or Ctrl-C drains and stops it, SIGHUP reloads the config",
        "check": "check a config and print all its problems and warnings; exits with 0, or 2 if there are problems",
        "routes": "print the routes of a config in the order in which they are matched",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--config", type=Path, default=Path("config/gateway.yaml"), help="YAML file (default: %(default)s)"
        )
        if name == "run":
            command.add_argument(
                "--demo", action="store_true", help="also run the demo upstream, on the first endpoint"
            )
    top = "show live transfers, upstreams and rates of a running gateway; its ops.token is read from OPS_TOKEN"
    command = commands.add_parser("top", help=top, description=top)
    command.add_argument(
        "--ops", default="http://127.0.0.1:9090", metavar="URL", help="the ops port (default: %(default)s)"
    )
    command.add_argument("--once", action="store_true", help="print it once as text")
    command.add_argument("--json", action="store_true", help="print it once as JSON")
    schema = "print the JSON Schema of config files, for editors"
    commands.add_parser("schema", help=schema, description=schema)
    return parser


def _print_routes(config: Config) -> None:
    for route in RouteTable(config.routes).routes:
        target = f" -> {route.upstream}" if route.upstream else ""
        match = describe_match(route, config.hide)
        print(f"{route.name:<20} {route.action_name + target:<28} {match}")  # noqa: T201 (a command's output)


def _top(url: str, *, is_once: bool, is_json: bool) -> int:
    from gateway.top import OpsError, read_once, run_screen  # noqa: PLC0415 (`run` needs nothing of it)

    if url.startswith("https:"):
        load_certificates()
    token = os.environ.get("OPS_TOKEN", "")
    try:
        if is_once:
            print(asyncio.run(read_once(url, token, is_json=is_json)))  # noqa: T201 (a command's output)
        else:
            asyncio.run(run_screen(url, token))
    except OpsError as error:
        print(f"gateway top: {error}", file=sys.stderr)  # noqa: T201 (standard output is for the snapshot)
        return _FAILED
    return 0


def _run(path: Path, signals: Signals, *, is_demo: bool) -> int:
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
    writer = start_logging(style)
    _log_warnings(config)
    try:
        gateway: Gateway | Supervisor
        if template is None:
            describe = choose_describe(style)
            gateway = Gateway(config, writer.add_line, sockets=sockets, notifier=notifier, describe=describe)
        else:
            from gateway.workers.supervisor import Supervisor  # noqa: PLC0415 (see above)

            gateway = Supervisor(config, template, writer, sockets=sockets, notifier=notifier)
        gateway.stats.dropped_log_lines = lambda: writer.dropped_lines
        asyncio.run(_serve(config, gateway, lambda: _load_and_warn(path), signals, is_demo=is_demo))
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

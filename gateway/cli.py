"""The `gateway` command. Exit codes: 0 success, 2 wrong usage or config, 1 other errors.

No traceback is printed for an error of the user, such as a port in use.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gateway import __version__, memory
from gateway.signals import Signals

_BAD_CONFIG: Final = 2
_FAILED: Final = 1


def main(arguments: Sequence[str] | None = None, signals: Signals | None = None) -> int:
    """Run the command and return its exit code. `arguments` replaces sys.argv."""
    options = _parser().parse_args(arguments)
    # Each command imports what it needs, so that `--help` and `schema` take no longer than they have to.
    from gateway.config import ConfigError  # noqa: PLC0415 (see above)

    try:
        match options.command:
            case "run":
                from gateway.run import run  # noqa: PLC0415 (see above)

                return run(options.config, signals or Signals(), is_demo=options.demo)
            case "check":
                _check(options.config)
            case "routes":
                _print_routes(options.config)
            case "top":
                return _top(options.ops, is_once=options.once or options.json, is_json=options.json)
            case _:
                from gateway.config.schema import json_schema  # noqa: PLC0415 (see above)

                print(json.dumps(json_schema(), indent=2))  # noqa: T201 (a command's output)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)  # noqa: T201 (a command's output)
        return _BAD_CONFIG
    return 0


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


def _check(path: Path) -> None:
    from gateway.run import find_warnings, load_and_check  # noqa: PLC0415 (see `main`)

    for warning in find_warnings(load_and_check(path)):
        print(f"{path}: {warning}", file=sys.stderr)  # noqa: T201 (a command's output)
    print(f"{path}: no problems found")  # noqa: T201 (a command's output)


def _print_routes(path: Path) -> None:
    from gateway.config import load_config  # noqa: PLC0415 (see `main`)
    from gateway.http.routing import RouteTable, describe_match  # noqa: PLC0415 (see `main`)

    config = load_config(path)
    for route in RouteTable(config.routes).routes:
        target = f" -> {route.upstream}" if route.upstream else ""
        match = describe_match(route, config.hide)
        print(f"{route.name:<20} {route.action_name + target:<28} {match}")  # noqa: T201 (a command's output)


def _top(url: str, *, is_once: bool, is_json: bool) -> int:
    # The first import of aiohttp: see `aiohttp_seam.certificates`.
    from gateway.aiohttp_seam import load_certificates  # noqa: PLC0415 (see `main`)
    from gateway.top import OpsError, read_once, run_screen  # noqa: PLC0415 (see `main`)

    if url.startswith("https:"):
        load_certificates()
    memory.tune_memory()
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

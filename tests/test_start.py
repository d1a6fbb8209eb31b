"""The start of the `gateway run` process: signals at any moment of it, and ports that cannot be opened."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.config.values import Address
from gateway.listener import ListenError, open_listener
from tests.conftest import require_tool
from tests.ops.test_ops import process
from tests.peers import OK, TIMEOUT_SECONDS, RawUpstream, responding, wait_until
from tests.ports import free_port

LISTEN: dict[str, Any] = {"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}}
ROUTE: dict[str, Any] = {"name": "a", "match": {"prefix": "/"}, "forward": {"upstream": "up"}}


def write_config(directory: Path, **keys: Any) -> Path:
    """Write a config with one route; the demo upstream would listen on a free port."""
    path = directory / "gateway.yaml"
    upstreams = {"up": {"endpoints": [f"http://127.0.0.1:{free_port()}"]}}
    path.write_text(json.dumps({**LISTEN, "upstreams": upstreams, "routes": [ROUTE], **keys}))
    return path


def has_loaded(running: asyncio.subprocess.Process, library: str) -> bool:
    """Return whether a process has loaded a library: the only sign of how far its imports are."""
    return library in Path(f"/proc/{running.pid}/maps").read_text()


async def message(running: asyncio.subprocess.Process) -> str:
    """Return the next log line that is not about an exchange."""
    assert running.stdout is not None
    while True:
        line = json.loads(await asyncio.wait_for(running.stdout.readline(), TIMEOUT_SECONDS))
        if line["event"] == "message":
            return str(line["message"])


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--demo"]])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("library", ["_asyncio", "_yaml", "_http_parser"])
async def test_signal_during_the_start_ends_it_without_a_trace(
    tmp_path: Path, library: str, number: signal.Signals, arguments: list[str]
) -> None:
    async with process(write_config(tmp_path), *arguments) as running:
        await wait_until(lambda: has_loaded(running, library))
        running.send_signal(number)
        _, err = await asyncio.wait_for(running.communicate(), TIMEOUT_SECONDS)
        assert running.returncode == 0
        assert b"Traceback" not in err
        # The demo upstream would be left in the session of its own, with these pipes open: communicate() ended.


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_signal_after_a_random_delay_ends_the_start_without_a_trace(tmp_path: Path) -> None:
    # Before the interpreter runs the first line of the gateway, only the system can end the process.
    choose = random.Random(1)
    for _ in range(200):
        async with process(write_config(tmp_path), *choose.choice([[], ["--demo"]])) as running:
            await wait_until(lambda: has_loaded(running, "_asyncio"))
            await asyncio.sleep(choose.uniform(0, 0.6))
            running.send_signal(choose.choice([signal.SIGTERM, signal.SIGINT]))
            _, err = await asyncio.wait_for(running.communicate(), TIMEOUT_SECONDS)
            assert running.returncode == 0
            assert b"Traceback" not in err


@pytest.mark.slow
async def test_sighup_during_the_start_reloads_after_it(tmp_path: Path) -> None:
    async with process(write_config(tmp_path)) as running:
        await wait_until(lambda: has_loaded(running, "_asyncio"))
        running.send_signal(signal.SIGHUP)
        assert "listening on" in await message(running)
        assert await message(running) == "the config was replaced"


@pytest.mark.slow
async def test_sighup_reloads_the_demo_and_stops_it_once_its_terminal_is_closed(tmp_path: Path) -> None:
    terminal, standard_error = os.openpty()
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", "gateway", "run", "--demo", "--config", str(write_config(tmp_path))]
    running = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=standard_error)
    os.close(standard_error)
    try:
        assert "listening on" in await message(running)
        running.send_signal(signal.SIGHUP)
        assert await message(running) == "the config was replaced"
    finally:
        os.close(terminal)
        running.send_signal(signal.SIGHUP)
        await asyncio.wait_for(running.communicate(), TIMEOUT_SECONDS)
    assert running.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("key", ["listen", "ops.listen", "upstreams.up.endpoints[0]"])
async def test_port_in_use_ends_the_start_with_one_line_that_names_its_key(tmp_path: Path, key: str) -> None:
    async with RawUpstream(responding(OK)) as other:
        taken = f"127.0.0.1:{other.port}"
        keys: dict[str, dict[str, Any]] = {
            "listen": {"listen": taken},
            "ops.listen": {"ops": {"listen": taken}},
            "upstreams.up.endpoints[0]": {"upstreams": {"up": {"endpoints": [f"http://{taken}"]}}},
        }
        async with process(write_config(tmp_path, **keys[key]), "--demo") as running:
            _, err = await asyncio.wait_for(running.communicate(), TIMEOUT_SECONDS)
            assert running.returncode == 1
            reason = "another process listens there: stop it, or choose another port"
            assert err.decode() == f"gateway: cannot start: {key}: cannot listen on {taken}: {reason}\n"


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("gateway.invalid", "the name cannot be resolved"),
        ("192.0.2.1", "this machine does not have the address"),
    ],
)
def test_address_that_cannot_be_listened_on_is_refused_with_its_reason(host: str, reason: str) -> None:
    with pytest.raises(ListenError, match=f"^ops.listen: cannot listen on {host}:8080: {reason}"):
        open_listener(Address(host, 8080), "ops.listen")


def test_privileged_port_names_the_capability(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway", "run", "--config", str(write_config(tmp_path, listen="127.0.0.1:1"))]
    if os.geteuid() == 0:
        command = [require_tool("setpriv"), "--bounding-set", "-net_bind_service", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    assert done.returncode == 1
    assert done.stderr.startswith("gateway: cannot start: listen: cannot listen on 127.0.0.1:1: this user may not")
    assert "CAP_NET_BIND_SERVICE" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["routes", "schema", "--help"])
def test_closed_pipe_ends_a_command_without_a_trace(tmp_path: Path, command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [command, "--config", str(write_config(tmp_path))] if command == "routes" else [command]
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == -signal.SIGPIPE


def test_check_does_not_take_over_signals(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["check", "--config", str(write_config(tmp_path))]) == 0
    assert signal.getsignal(signal.SIGTERM) is before

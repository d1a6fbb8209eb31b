"""The log on a terminal is for people, and JSON elsewhere: `gateway run` on a real pseudo-terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.observe.units import show_bytes
from tests.peers import OK, TIMEOUT_SECONDS, RawUpstream, forward_config, responding

CLOCK = r"\d\d:\d\d:\d\d "


class Terminal:
    """`gateway run` with a terminal as its standard output."""

    def __init__(self, reading: int) -> None:
        self._reader = asyncio.StreamReader()
        os.set_blocking(reading, False)
        self._reading = reading
        asyncio.get_running_loop().add_reader(reading, self._feed)
        self.port = 0

    def _feed(self) -> None:
        try:
            self._reader.feed_data(os.read(self._reading, 65536))
        except OSError:
            # The other end was closed.
            asyncio.get_running_loop().remove_reader(self._reading)
            self._reader.feed_eof()

    async def line(self) -> str:
        line = await asyncio.wait_for(self._reader.readline(), TIMEOUT_SECONDS)
        return line.decode().rstrip("\r\n")

    async def request(self, head: str) -> None:
        """Send a request, and read its response until the gateway closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"{head}\r\nHost: a\r\nConnection: close\r\n\r\n".encode("latin-1"))
        await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS)
        writer.close()

    async def line_of(self, head: str) -> str:
        """Send a request, and return its log line."""
        await self.request(head)
        return await self.line()


@contextlib.asynccontextmanager
async def run_on_terminal(directory: Path, config: dict[str, Any], **environment: str) -> AsyncIterator[Terminal]:
    path = directory / "gateway.yaml"
    path.write_text(json.dumps({"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}, **config}))
    reading, writing = pty.openpty()
    running = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "gateway", "run", "--config", str(path)],
        stdout=writing,
        start_new_session=True,
        env={**{key: value for key, value in os.environ.items() if key != "NO_COLOR"}, "TERM": "xterm", **environment},
    )
    os.close(writing)
    terminal = Terminal(reading)
    try:
        yield terminal
    finally:
        running.send_signal(signal.SIGTERM)
        await asyncio.wait_for(running.wait(), TIMEOUT_SECONDS)
        asyncio.get_running_loop().remove_reader(reading)
        os.close(reading)


async def started(terminal: Terminal) -> str:
    """Wait for the start, and return its line."""
    line = await terminal.line()
    found = re.search(r"listening on 127\.0\.0\.1:(\d+)", line)
    assert found, line
    terminal.port = int(found[1])
    return line


@pytest.mark.slow
async def test_terminal_shows_a_colored_line_for_each_exchange(tmp_path: Path) -> None:
    async with (
        RawUpstream(responding(OK)) as upstream,
        run_on_terminal(tmp_path, forward_config(upstream.url)) as shown,
    ):
        assert re.fullmatch(CLOCK + r"listening on \S+, ops on \S+", await started(shown))
        line = await shown.line_of("GET /models?x=1 HTTP/1.1")
        assert re.fullmatch(CLOCK + r"\x1b\[32m200\x1b\[0m GET /models\?x=1 0\.\d\d s, down 2 B at [\d.]+ k?B/s", line)
        assert "\x1b[33m400\x1b[0m" in await shown.line_of("GET / HTTP/1.1\r\nHost: b")


@pytest.mark.slow
async def test_fault_names_blame_code_and_reason(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        url = upstream.url
    async with run_on_terminal(tmp_path, forward_config(url)) as shown:
        await started(shown)
        line = await shown.line_of("GET / HTTP/1.1")
        assert re.match(CLOCK + r"\x1b\[31m502\x1b\[0m GET / 0\.\d\d s, upstream connect_refused: ", line)


@pytest.mark.slow
async def test_what_a_client_sends_controls_no_terminal(tmp_path: Path) -> None:
    config = forward_config("http://127.0.0.1:1", match={"prefix": "/a"})
    async with run_on_terminal(tmp_path, config, NO_COLOR="1") as shown:
        await started(shown)
        for target in ("/b\x1b[2J", "/b\x9b2J", "/b" + "\x7f" * 10, "/b" + "c" * 1000):
            line = await shown.line_of(f"GET {target} HTTP/1.1")
            assert line.isprintable()
            assert len(line) < 600


@pytest.mark.slow
async def test_no_color_and_json_on_a_terminal_where_they_are_asked_for(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        config = forward_config(upstream.url)
        async with run_on_terminal(tmp_path, config, NO_COLOR="1") as shown:
            await started(shown)
            assert re.match(CLOCK + "200 GET / ", await shown.line_of("GET / HTTP/1.1"))
        async with run_on_terminal(tmp_path, {**config, "log": {"format": "json"}}) as shown:
            await started(shown)
            assert json.loads(await shown.line_of("GET / HTTP/1.1"))["status"] == 200


@pytest.mark.slow
async def test_text_without_a_terminal_has_no_color(tmp_path: Path) -> None:
    config = {"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}, "log": {"format": "text"}}
    path = tmp_path / "gateway.yaml"
    path.write_text(json.dumps({**config, **forward_config("http://127.0.0.1:1")}))
    command = [sys.executable, "-m", "gateway", "run", "--config", str(path)]
    running = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert running.stdout is not None
    line = (await asyncio.wait_for(running.stdout.readline(), TIMEOUT_SECONDS)).decode()
    assert re.fullmatch(CLOCK + r"listening on \S+, ops on \S+\n", line)
    running.send_signal(signal.SIGTERM)
    rest = (await asyncio.wait_for(running.communicate(), TIMEOUT_SECONDS))[0].decode()
    assert re.fullmatch(rf"({CLOCK}drain [^\n]+\n)+", rest)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_950, "9.9 kB"),
        (12_345, "12 kB"),
        (999_400, "999 kB"),
        (999_999, "1.0 MB"),
        (1_234_567_890, "1.2 GB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_sizes_are_shown_in_si_units(size: float, text: str) -> None:
    assert show_bytes(size) == text

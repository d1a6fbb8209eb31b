"""`gateway top` against real gateways: its screen through textual's pilot and in a real tmux, and its printed forms."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import DataTable, Static

from gateway.top.client import OpsClient, OpsError
from gateway.top.rows import HEADINGS, Order, show_table, show_transfer, sort_transfers
from gateway.top.screen import TopApp
from tests.conftest import require_tool
from tests.peers import TIMEOUT_SECONDS, RawUpstream, RunningGateway, Wire, forward_config, run_gateway, wait_until

ROW: dict[str, Any] = {
    "id": "7-1",
    "route": "transcribe",
    "client": "10.0.0.9",
    "method": "POST",
    "target": "/v1/transcribe?x=1",
    "direction": "upload",
    "bytes": 250_000_000,
    "length": 1_000_000_000,
    "bytes_per_second": 10_000_000,
    "seconds": 25.0,
    "eta_seconds": 75.0,
    "waiting_on": "upstream_write",
    "waiting_seconds": 0.4,
    "wait_seconds": {"downstream_read": 5.0, "upstream_write": 20.0},
}


async def hold(wire: Wire) -> None:
    """Read whatever comes, and never respond."""
    while await wire.reader.read(65536):
        pass


@contextlib.asynccontextmanager
async def slow_upload(gateway: RunningGateway, target: str = "/slow") -> AsyncIterator[asyncio.StreamReader]:
    """Begin an upload of which one byte never comes; yield what the client reads from."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n".encode() + b"x" * 1000)
    try:
        yield reader
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def gateway_with_upload(**top: Any) -> AsyncIterator[tuple[RunningGateway, asyncio.StreamReader]]:
    async with (
        RawUpstream(hold) as upstream,
        run_gateway(forward_config(upstream.url, top=top)) as gateway,
        slow_upload(gateway) as reader,
    ):
        await wait_until(lambda: upstream.wires and gateway.gateway.exchange_count)
        yield gateway, reader


def test_row_shows_progress_rate_and_who_took_the_time() -> None:
    cells = dict(zip(HEADINGS, show_transfer(ROW), strict=True))
    assert cells == {
        "route": "transcribe",
        "client": "10.0.0.9",
        "request": "POST /v1/transcribe?x=1",
        "progress": "up [##........] 250 MB of 1.0 GB",
        "rate": "10 MB/s",
        "age": "25 s",
        "left": "75 s",
        "waits for": "upstream to read",
        "time": "ccuuuuuuuu",
    }


def test_row_that_waits_shows_for_how_long() -> None:
    cells = show_transfer({**ROW, "waiting_on": "upstream_response", "waiting_seconds": 12.3})
    assert cells[HEADINGS.index("waits for")] == "model to respond 12 s"


@pytest.mark.parametrize("legs", [{"queue": 1.0}, {"connect": 1, "filter": 1, "disk_write": 1}, {"queue": 1e-9}])
def test_time_bar_has_ten_letters_whatever_the_shares(legs: dict[str, float]) -> None:
    assert len(show_transfer({**ROW, "wait_seconds": legs})[-1]) == 10


def test_row_of_a_client_controls_no_terminal() -> None:
    assert all(cell.isprintable() for cell in show_transfer({**ROW, "target": "/\x1b[2J\x9b\n"}))


def test_transfers_are_sorted_and_filtered() -> None:
    rows = [
        {**ROW, "id": "1", "route": "a", "bytes_per_second": 1, "seconds": 9.0},
        {**ROW, "id": "2", "route": "b", "bytes_per_second": 2, "seconds": 5.0},
        {**ROW, "id": "3", "route": "a", "bytes_per_second": 3, "seconds": 1.0},
    ]
    assert [row["id"] for row in sort_transfers(rows, Order.AGE, None)] == ["1", "2", "3"]
    assert [row["id"] for row in sort_transfers(rows, Order.RATE, "a")] == ["3", "1"]


async def test_screen_shows_an_upload_and_cancels_it() -> None:
    async with gateway_with_upload() as (gateway, reader), OpsClient(gateway.ops_url, "") as client:
        app = TopApp(client)
        async with app.run_test(size=(160, 40)) as pilot:
            table = app.query_one("#transfers", DataTable)
            await wait_until(lambda: table.row_count == 1)
            cells = [str(cell) for cell in table.get_row_at(0)]
            assert cells[:4] == ["r", "127.0.0.1", "POST /slow", "up [#########.] 1.0 kB of 1.0 kB"]
            await pilot.press("c")
            await pilot.press("n")
            await pilot.press("s", "r")
            assert not reader.at_eof()
            await pilot.press("c")
            await pilot.press("y")
            response = await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS)
            assert b"cancelled" in response
            await wait_until(lambda: table.row_count == 0)
            await pilot.press("q")
        assert [line["outcome"] for line in gateway.log] == ["cancelled"]


async def test_screen_says_that_it_is_not_current_while_the_gateway_is_gone() -> None:
    async with RawUpstream(hold) as upstream:
        async with run_gateway(forward_config(upstream.url)) as gateway:
            url = gateway.ops_url
        async with OpsClient(url, "") as client:
            app = TopApp(client)
            async with app.run_test() as pilot:
                summary = app.query_one("#summary", Static)
                await wait_until(lambda: "NOT CURRENT: cannot reach" in str(summary.render()))
                await pilot.press("c", "s", "r", "q")


async def test_token_is_needed_and_sent() -> None:
    async with gateway_with_upload(ops={"listen": "127.0.0.1:0", "token": "secret"}) as (gateway, _):
        async with OpsClient(gateway.ops_url, "") as client:
            with pytest.raises(OpsError, match="OPS_TOKEN"):
                await client.snapshot()
        async with OpsClient(gateway.ops_url, "secret") as client:
            assert len((await client.snapshot())["transfers"]) == 1
            assert await client.cancel("1-1") is False


async def run_top(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the command; return its exit code and what it wrote."""
    running = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "gateway", "top", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    output, errors = await asyncio.wait_for(running.communicate(), TIMEOUT_SECONDS)
    assert running.returncode is not None
    return running.returncode, output.decode(), errors.decode()


@pytest.mark.slow
async def test_once_prints_text_or_json() -> None:
    async with gateway_with_upload() as (gateway, _):
        code, text, errors = await run_top("--once", "--ops", gateway.ops_url)
        assert (code, errors) == (0, "")
        assert "POST /slow" in text
        assert text.startswith("1 transfer, ")
        code, text, _ = await run_top("--json", "--ops", gateway.ops_url)
        assert [row["target"] for row in json.loads(text)["transfers"]] == ["/slow"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1", "cannot reach the ops port at http://127.0.0.1:1: connection refused"),
        ("http://[", "is no URL"),
    ],
)
async def test_port_that_cannot_be_read_is_one_line_on_standard_error(url: str, reason: str) -> None:
    code, text, errors = await run_top("--once", "--ops", url)
    assert (code, text) == (1, "")
    assert errors.startswith("gateway top: ")
    assert reason in errors
    assert errors.count("\n") == 1


@pytest.mark.slow
async def test_without_the_extra_the_message_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "textual.py").write_text("raise ModuleNotFoundError(\"No module named 'textual'\", name='textual')")
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich/text.py").write_text("Text = str")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    code, _, errors = await run_top("--ops", "http://127.0.0.1:1", PYTHONPATH=path)
    assert code == 1
    assert "pip install 'streaming-gateway[top]'" in errors


@pytest.mark.slow
async def test_screen_runs_in_a_real_terminal(tmp_path: Path) -> None:
    tmux = require_tool("tmux")
    socket = str(tmp_path / "tmux")

    async def run(*arguments: str) -> str:
        running = await asyncio.create_subprocess_exec(tmux, "-S", socket, *arguments, stdout=subprocess.PIPE)
        return (await asyncio.wait_for(running.communicate(), TIMEOUT_SECONDS))[0].decode()

    async with gateway_with_upload() as (gateway, reader):
        command = shlex.join([sys.executable, "-m", "gateway", "top", "--ops", gateway.ops_url])
        # The session ends with the command: its exit code is kept in a file.
        code = tmp_path / "code"
        session = uuid.uuid4().hex
        await run("new-session", "-d", "-s", session, "-x", "150", "-y", "40", f"{command}; echo $? > {code}")
        try:
            await wait_until_shown(run, "POST /slow")
            await run("send-keys", "-t", session, "c")
            await wait_until_shown(run, "Cancel POST /slow")
            await run("send-keys", "-t", session, "y")
            assert b"cancelled" in await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS)
            await run("send-keys", "-t", session, "q")
            await wait_until(lambda: code.exists() and code.read_text() == "0\n")
        finally:
            await run("kill-server")


async def wait_until_shown(run: Callable[..., Any], text: str) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while text not in await run("capture-pane", "-p"):  # noqa: ASYNC110 (a screen has no event)
            await asyncio.sleep(0.1)


def test_once_without_a_transfer_says_so() -> None:
    rates = {"requests_per_second": 0.0, "errors_per_second": 0.0}
    now = {"upload_bytes_per_second": 0, "download_bytes_per_second": 0, **rates}
    snapshot = {"transfers": [], "transfers_total": 0, "upstreams": [], "problems": [], "routes": [{"now": now}]}
    assert show_table(snapshot) == "0 transfers, up 0 B/s, down 0 B/s, 0 requests/s, 0 errors/s"

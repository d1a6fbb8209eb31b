"""The scan filter with a real clamd that has one signature, of the EICAR test file."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require_tool
from tests.peers import (
    OK,
    RawUpstream,
    Wire,
    form,
    forward_config,
    post,
    problem_of,
    read_request,
    responding,
    run_gateway,
    split_response,
)

pytestmark = pytest.mark.slow
# The EICAR test file, in two halves so that no scanner detects it in this source file.
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR" + rb"-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
MAX_BYTES = 5_000_000


@contextlib.asynccontextmanager
async def clamd(directory: Path) -> AsyncIterator[str]:
    """Run a clamd with one signature; yield its address."""
    program = require_tool("clamd")
    os.chmod(directory, 0o755)
    (directory / "test.ndb").write_text(f"Eicar-Test:0:*:{EICAR.hex()}\n")
    address = directory / "clamd.sock"
    (directory / "clamd.conf").write_text(
        f"DatabaseDirectory {directory}\nLocalSocket {address}\nForeground yes\nStreamMaxLength {MAX_BYTES}\n"
    )
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        program, "-c", str(directory / "clamd.conf"), stdout=quiet, stderr=quiet
    )
    try:
        async with asyncio.timeout(30):
            while not address.is_socket():  # noqa: ASYNC110 (no event exists)
                await asyncio.sleep(0.02)
        yield f"unix:{address}"
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.timeout(60)
async def test_infected_files_are_refused_and_clean_files_pass(tmp_path: Path) -> None:
    finished: list[bytes] = []

    async def script(wire: Wire) -> None:
        while True:
            finished.append((await read_request(wire))[1])
            await wire.send(OK)

    async def send(config: dict[str, Any], data: bytes) -> bytes:
        async with run_gateway(config) as gateway:
            response = await gateway.request(post(form(('name="f"; filename="a"', data))))
            line = await gateway.wait_log_line()
            if split_response(response)[0] == 200:
                assert line["parts"][0]["scanned"] in ("clean", "failed")
            return response

    clean = os.urandom(2_000_000)
    async with clamd(tmp_path) as address, RawUpstream(script) as upstream:
        config = forward_config(upstream.url, filters=[{"scan": {"clamd": address}}])
        assert split_response(await send(config, clean))[0] == 200
        assert split_response(await send(config, b""))[0] == 200
        assert len(finished) == 2
        for infected in (EICAR, clean + EICAR, EICAR + clean):
            problem = problem_of(await send(config, infected))
            assert (problem["status"], problem["code"]) == (422, "malware_found")
            assert "Eicar-Test" in problem["detail"]
        # A file larger than StreamMaxLength is refused, unless the config sets `on_error: pass`.
        problem = problem_of(await send(config, clean * 4))
        assert (problem["status"], problem["code"]) == (503, "scanner_failed")
        assert len(finished) == 2
        lenient = forward_config(upstream.url, filters=[{"scan": {"clamd": address, "on_error": "pass"}}])
        assert split_response(await send(lenient, clean * 4))[0] == 200
        assert len(finished) == 3


async def test_missing_scanner_is_503(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        config = forward_config(upstream.url, filters=[{"scan": {"clamd": f"unix:{tmp_path}/none"}}])
        async with run_gateway(config) as gateway:
            problem = problem_of(await gateway.request(post(b"data", content_type="x/y")))
            assert (problem["code"], problem["status"]) == ("scanner_failed", 503)

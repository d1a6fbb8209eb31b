"""A real clamd behind the scan filter, with a signature of EICAR's test file."""

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
# EICAR's test file, in two halves so that no scanner takes this one for it.
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR" + rb"-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
MOST_BYTES = 5_000_000


@contextlib.asynccontextmanager
async def clamd(directory: Path) -> AsyncIterator[str]:
    """Run a clamd that knows one signature; yield where it listens."""
    program = require_tool("clamd")
    os.chmod(directory, 0o755)
    (directory / "test.ndb").write_text(f"Eicar-Test:0:*:{EICAR.hex()}\n")
    place = directory / "clamd.sock"
    (directory / "clamd.conf").write_text(
        f"DatabaseDirectory {directory}\nLocalSocket {place}\nForeground yes\nStreamMaxLength {MOST_BYTES}\n"
    )
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        program, "-c", str(directory / "clamd.conf"), stdout=quiet, stderr=quiet
    )
    try:
        async with asyncio.timeout(30):
            while not place.is_socket():  # noqa: ASYNC110 (it announces itself by no event)
                await asyncio.sleep(0.02)
        yield f"unix:{place}"
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.timeout(60)
async def test_what_the_scanner_finds_is_cut_and_the_rest_passes(tmp_path: Path) -> None:
    finished: list[bytes] = []

    async def script(wire: Wire) -> None:
        while True:
            finished.append((await read_request(wire))[1])
            await wire.send(OK)

    async def send(config: dict[str, Any], data: bytes) -> bytes:
        async with run_gateway(config) as gateway:
            answer = await gateway.request(post(form(('name="f"; filename="a"', data))))
            line = await gateway.wait_log_line()
            if split_response(answer)[0] == 200:
                assert line["parts"][0]["scanned"] in ("clean", "failed")
            return answer

    clean = os.urandom(2_000_000)
    async with clamd(tmp_path) as place, RawUpstream(script) as upstream:
        config = forward_config(upstream.url, filters=[{"scan": {"clamd": place}}])
        assert split_response(await send(config, clean))[0] == 200
        assert split_response(await send(config, b""))[0] == 200
        assert len(finished) == 2
        for infected in (EICAR, clean + EICAR, EICAR + clean):
            problem = problem_of(await send(config, infected))
            assert (problem["status"], problem["code"]) == (422, "malware_found")
            assert "Eicar-Test" in problem["detail"]
        # More than the daemon takes is not passed on unscanned, unless the config says so.
        problem = problem_of(await send(config, clean * 4))
        assert (problem["status"], problem["code"]) == (503, "scanner_failed")
        assert len(finished) == 2
        lenient = forward_config(upstream.url, filters=[{"scan": {"clamd": place, "on_error": "pass"}}])
        assert split_response(await send(lenient, clean * 4))[0] == 200
        assert len(finished) == 3


async def test_scanner_that_is_not_there_is_503(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        config = forward_config(upstream.url, filters=[{"scan": {"clamd": f"unix:{tmp_path}/none"}}])
        async with run_gateway(config) as gateway:
            problem = problem_of(await gateway.request(post(b"data", content_type="x/y")))
            assert (problem["code"], problem["status"]) == ("scanner_failed", 503)

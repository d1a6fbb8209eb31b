"""The API speaks for all workers: it shows the transfers of each, and cancels a transfer in the one that has it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.ops.live import OPENAPI, read_all, validate
from tests.peers import TIMEOUT_SECONDS, RawUpstream, Wire, forward_config, problem_of
from tests.workers.processes import Processes, run_processes

pytestmark = pytest.mark.slow


async def ask(gateway: Processes, path: str) -> Any:
    status, body = await gateway.ops(f"/api/{path}")
    assert status == 200
    return json.loads(body)


async def upload_to(gateway: Processes, worker: int, stack: contextlib.AsyncExitStack) -> Wire:
    """Begin an upload that a certain worker has accepted."""
    while True:
        count = len(await transfers(gateway))
        client = await gateway.connect()
        stack.push_async_callback(client.close)
        await client.send(b"POST / HTTP/1.1\r\nHost: gw\r\nContent-Length: 9\r\n\r\nx")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while len(await transfers(gateway)) == count:  # noqa: ASYNC110 (no event exists across processes)
                await asyncio.sleep(0.01)
        if gateway.worker_of(client) == worker:
            return client


async def transfers(gateway: Processes) -> list[dict[str, Any]]:
    document = await ask(gateway, "transfers")
    validate(
        document, OPENAPI["paths"]["/api/transfers"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    )
    found: list[dict[str, Any]] = document["transfers"]
    return found


@pytest.mark.timeout(120)
async def test_transfers_of_all_workers_are_shown_and_cancelled_where_they_are(tmp_path: Path) -> None:
    async with RawUpstream(read_all) as upstream, contextlib.AsyncExitStack() as stack:
        async with run_processes(tmp_path, forward_config(upstream.url)) as gateway, aiohttp.ClientSession() as session:
            await gateway.wait_started()
            first, second = gateway.workers
            clients = {worker: await upload_to(gateway, worker, stack) for worker in (first, second)}
            shown = {row["worker"]: row for row in await transfers(gateway)}
            assert shown.keys() == {first, second}
            snapshot = await ask(gateway, "snapshot")
            validate(snapshot, OPENAPI["components"]["schemas"]["Snapshot"])
            assert {row["worker"] for row in snapshot["transfers"]} == {first, second}

            url = f"http://127.0.0.1:{gateway.ops_port}/api/transfers/"
            mine = [row for row in await transfers(gateway) if row["worker"] == second]
            for row in mine:
                async with session.delete(url + row["id"]) as response:
                    assert response.status == 202
            assert problem_of(await clients[second].read_to_end())["code"] == "operator_cancelled"
            async with session.delete(url + mine[0]["id"]) as response:
                assert response.status == 404
            async with session.delete(url + "1-1") as response:
                assert response.status == 404
            assert {row["worker"] for row in await transfers(gateway)} == {first}
            failures = (await ask(gateway, "failures"))["failures"]
            assert {(each["worker"], each["code"]) for each in failures} == {(second, "operator_cancelled")}

            # A worker that does not respond is left out, and the others are shown.
            os.kill(second, signal.SIGSTOP)
            try:
                assert {row["worker"] for row in await transfers(gateway)} == {first}
            finally:
                os.kill(second, signal.SIGCONT)
            # The first worker may have got more than one of them.
            await stack.aclose()
            assert await gateway.terminate() == 0


@pytest.mark.timeout(120)
async def test_failures_of_a_worker_are_shown_after_its_end_and_while_it_does_not_respond(tmp_path: Path) -> None:
    async with run_processes(tmp_path, forward_config("http://127.0.0.1:9")) as gateway:
        await gateway.wait_started()
        request = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
        while {row["worker"] for row in await failures(gateway)} != set(gateway.workers):
            await gateway.request(request)
        shown = await failures(gateway)
        # Within a second workers send their failures, and after them their counts.
        async with asyncio.timeout(2 * TIMEOUT_SECONDS):
            while sum(row["requests"] for row in (await ask(gateway, "routes"))["routes"]) < len(shown):
                pass
        first, second = gateway.workers
        os.kill(first, signal.SIGTERM)
        async with asyncio.timeout(2 * TIMEOUT_SECONDS):
            while first in gateway.workers:  # noqa: ASYNC110 (no event exists across processes)
                await asyncio.sleep(0.01)
        assert await failures(gateway) == shown
        os.kill(second, signal.SIGSTOP)
        try:
            assert await failures(gateway) == shown
        finally:
            os.kill(second, signal.SIGCONT)
        assert await gateway.terminate() == 0


async def failures(gateway: Processes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await ask(gateway, "failures"))["failures"]
    return found

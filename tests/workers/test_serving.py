"""Several workers serve like one gateway."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.peers import OK, RawUpstream, forward_config, responding, split_response
from tests.workers.processes import name_of, run_processes

GET = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"

pytestmark = pytest.mark.slow


async def test_workers_serve_and_are_named_and_listed(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url, top={"workers": 3})) as gateway:
            await gateway.wait_started()
            for _ in range(10):
                status, _, body = split_response(await gateway.request(GET))
                assert (status, body) == (200, b"ok")
            assert await gateway.ops("/readyz") == (200, "ok\n")
            workers = gateway.workers
            listed = (await gateway.wait_log("processes:"))["message"]
            pids = (
                f"supervisor {gateway.supervisor}, template {gateway.template}, workers {' '.join(map(str, workers))}"
            )
            assert listed == f"processes: {pids}"
            names = [name_of(pid) for pid in (gateway.supervisor, gateway.template, *workers)]
            assert names == ["gateway-supervi", "gateway-templat", *["gateway-worker"] * 3]
            assert len(await gateway.wait_exchanges(10)) == 10
            assert await gateway.terminate() == 0

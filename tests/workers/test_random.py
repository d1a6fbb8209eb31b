"""Random sequences of requests, kills, reloads and scrapes: the counters shown are the work that clients have seen."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from pathlib import Path

import pytest

from tests.peers import OK, TIMEOUT_SECONDS, RawUpstream, Wire, forward_config, post, read_request, split_response
from tests.workers.processes import Processes, run_processes
from tests.workers.test_counts import Series, fallen, requests_of, scrape, value

pytestmark = pytest.mark.slow

#: Restarts of workers that die soon after their start are held off.
MAX_KILLS = 4


class Run:
    """A gateway, and the work that its clients have seen."""

    def __init__(self, gateway: Processes, generator: random.Random) -> None:
        self._gateway = gateway
        self._generator = generator
        #: Responses received whole, and bytes of their requests.
        self.responses = self.bytes = 0
        #: Requests whose connection was cut: each may have been counted, or not.
        self.cuts = self.cut_bytes = 0
        self._shown: dict[Series, float] = {}
        #: What was seen and shown at the last scrape; what came after it may be lost with a worker.
        self._at_scrape = (0, 0)
        self._kills = self._reloads = 0
        self._is_exact = True

    async def send_requests(self) -> None:
        """Let some clients send a request each, at once."""
        await asyncio.gather(*(self._send_request() for _ in range(self._generator.randint(1, 8))))

    async def kill_worker(self) -> None:
        """Kill a worker that does nothing."""
        self._kill()

    async def kill_worker_at_work(self) -> None:
        """Kill a worker while clients send requests."""
        work = asyncio.gather(*(self._send_request() for _ in range(6)))
        await asyncio.sleep(0)
        self._kill()
        await work

    async def reload(self) -> None:
        """Change the number of workers, or a limit of the route."""
        self._reloads += 1
        self._gateway.write_config(workers=self._generator.randint(2, 4), max_connections=1000 + self._reloads)
        self._gateway.hang_up()
        await self._gateway.wait_log("the config was replaced", self._reloads)

    async def scrape(self) -> None:
        """Compare what is shown with what was seen."""
        shown = await scrape(self._gateway)
        assert fallen(self._shown, shown) == []
        self._shown = shown
        count = int(requests_of(shown))
        moved = int(value(shown, "gateway_transfer_bytes_total", route="r", upstream="up", direction="upload"))
        seen_before, bytes_before = self._at_scrape
        if self._is_exact:
            assert (count, moved) == (seen_before + self.responses, bytes_before + self.bytes)
        else:
            assert seen_before <= count <= seen_before + self.responses + self.cuts
            assert bytes_before <= moved <= bytes_before + self.bytes + self.cut_bytes
        self._at_scrape = (count, moved)
        self.responses = self.bytes = self.cuts = self.cut_bytes = 0
        self._is_exact = True

    def _kill(self) -> None:
        if self._kills < MAX_KILLS:
            self._kills += 1
            self._is_exact = False
            os.kill(self._generator.choice(self._gateway.workers), signal.SIGKILL)

    async def _send_request(self) -> None:
        body = b"x" * self._generator.choice([1, 1000, 300_000])
        try:
            response = await self._gateway.request(post(body, content_type="x/y"))
        except ConnectionError:
            response = b""
        if not response.endswith(b"\r\n\r\nok"):
            # Cut before the end, or before the response.
            assert not self._is_exact, response
            self.cuts += 1
            self.cut_bytes += len(body)
            return
        assert split_response(response)[0] == 200
        self.responses += 1
        self.bytes += len(body)


async def respond(wire: Wire) -> None:
    while True:
        await read_request(wire)
        await wire.send(OK)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_counters_never_go_back_and_equal_the_work_seen_by_clients(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    async with RawUpstream(respond) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url, top={"workers": 3})) as gateway:
            await gateway.wait_started()
            run = Run(gateway, generator)
            steps = [run.send_requests] * 5 + [run.scrape] * 4 + [run.kill_worker, run.kill_worker_at_work, run.reload]
            for _ in range(40):
                await generator.choice(steps)()
            await run.scrape()
            await run.send_requests()
            await run.scrape()
            assert await gateway.terminate() == 0


async def test_killed_workers_lose_nothing_that_was_sent_before(tmp_path: Path) -> None:
    """Without a scrape: workers send their counts each second, which the API shows."""
    async with RawUpstream(respond) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url, top={"workers": 2})) as gateway:
            await gateway.wait_started()
            for _ in range(10):
                await gateway.request(post(b"x"))

            async with asyncio.timeout(TIMEOUT_SECONDS):
                while json.loads((await gateway.ops("/api/routes"))[1])["routes"][0]["requests"] < 10:  # noqa: ASYNC110 (no event exists: the API is asked again)
                    await asyncio.sleep(0.05)
            for pid in gateway.workers:
                os.kill(pid, signal.SIGKILL)
            await gateway.wait_log("serves", 2)
            assert requests_of(await scrape(gateway)) == 10

"""The ops port speaks for all workers: counters add up and never go back, whatever happens to a worker."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import require_tool
from tests.peers import OK, RawUpstream, forward_config, responding, split_response
from tests.workers.processes import Processes, run_processes

GET = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"

pytestmark = pytest.mark.slow

#: Of one series: its name and labels.
Series = tuple[str, tuple[tuple[str, str], ...]]


async def scrape(gateway: Processes) -> dict[Series, float]:
    """Return every series of /metrics."""
    status, text = await gateway.ops("/metrics")
    assert status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in text_string_to_metric_families(text)
        for sample in metric.samples
    }


def value(shown: dict[Series, float], name: str, **labels: str) -> float:
    return shown[name, tuple(sorted(labels.items()))]


def requests_of(shown: dict[Series, float], route: str = "r") -> float:
    """Return the exchanges of a route."""
    return sum(
        number
        for (name, labels), number in shown.items()
        if name == "gateway_requests_total" and ("route", route) in labels
    )


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def fallen(before: dict[Series, float], after: dict[Series, float]) -> list[Series]:
    """Return the counters of both that are lower than before."""
    suffixes = ("_total", "_bucket", "_count", "_sum")
    return [
        series
        for series, number in before.items()
        if series[0].endswith(suffixes) and series in after and after[series] < number
    ]


async def test_counts_of_all_workers_are_added_and_those_of_the_killed_stay(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url, top={"workers": 3})) as gateway:
            await gateway.wait_started()
            for _ in range(30):
                assert split_response(await gateway.request(GET))[0] == 200
            await gateway.wait_exchanges(30)
            before = await scrape(gateway)
            assert requests_of(before) == 30
            assert value(before, "gateway_request_duration_seconds_count", route="r") == 30
            assert value(before, "gateway_workers") == 3
            assert value(before, "gateway_workers_stale") == value(before, "gateway_worker_restarts_total") == 0
            for pid in gateway.workers[:2]:
                os.kill(pid, signal.SIGKILL)
            await gateway.wait_log("serves", 2)
            after = await scrape(gateway)
            assert requests_of(after) == 30
            assert fallen(before, after) == []
            assert (value(after, "gateway_workers"), value(after, "gateway_worker_restarts_total")) == (3, 2)


async def test_merged_exposition_is_valid_for_promtool(tmp_path: Path) -> None:
    promtool = require_tool("promtool")
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url)) as gateway:
            await gateway.wait_started()
            await gateway.request(GET)
            _, text = await gateway.ops("/metrics")
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(
                promtool, "check", "metrics", stdin=pipe, stdout=pipe, stderr=pipe
            )
            out, err = await process.communicate(text.encode())
            assert process.returncode == 0, (out + err).decode()


async def test_stuck_worker_is_shown_with_its_last_counts(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url)) as gateway:
            await gateway.wait_started()
            for _ in range(10):
                await gateway.request(GET)
            await gateway.wait_exchanges(10)
            assert requests_of(await scrape(gateway)) == 10
            stopped = gateway.workers[0]
            os.kill(stopped, signal.SIGSTOP)
            shown = await scrape(gateway)
            assert (requests_of(shown), value(shown, "gateway_workers_stale")) == (10, 1)
            os.kill(stopped, signal.SIGCONT)
            assert value(await scrape(gateway), "gateway_workers_stale") == 0


async def test_processes_are_shown_as_one(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url)) as gateway:
            await gateway.wait_started()
            before = await scrape(gateway)
            pids = [gateway.supervisor, gateway.template, *gateway.workers]
            assert value(before, "process_resident_memory_bytes") > 20 * 2**20
            assert value(before, "process_resident_memory_bytes") < sum(map(resident_bytes, pids))
            assert value(before, "process_cpu_seconds_total") > 0
            # The supervisor has a connection for this scrape, and prometheus_client opens the directory to count.
            assert 0 < value(before, "process_open_fds") <= max(map(open_descriptors, pids)) + 2
            for pid in gateway.workers:
                os.kill(pid, signal.SIGKILL)
            await gateway.wait_log("serves", 2)
            after = await scrape(gateway)
            assert value(after, "process_cpu_seconds_total") >= value(before, "process_cpu_seconds_total")


async def test_removed_route_ends_and_starts_at_0_when_it_is_back(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        config = forward_config(upstream.url)
        (route,) = config["routes"]
        async with run_processes(tmp_path, config) as gateway:
            await gateway.wait_started()
            for _ in range(6):
                await gateway.request(GET)
            await gateway.wait_exchanges(6)
            assert requests_of(await scrape(gateway)) == 6
            for count, name in enumerate(["other", "r"], 1):
                gateway.write_config(routes=[{**route, "name": name}])
                gateway.hang_up()
                await gateway.wait_log("the config was replaced", count)
                shown = await scrape(gateway)
                names = {dict(labels).get("route") for _, labels in shown}
                assert names == {None, "", name}
                assert value(shown, "gateway_config_reloads_total", result="success") == count
            assert requests_of(shown) == 0
            assert value(shown, "gateway_requests_in_flight", route="r") == 0

"""A disk that does not answer stops the routes of its directory, and nothing else.

The disk is a real file system, and the calls to it wait in the kernel. The other requests are served by the same event
loop: if one call were made on it, they would wait, too.
"""

from __future__ import annotations

import asyncio
import errno
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.leaks import stray_lines
from tests.peers import (
    TIMEOUT_SECONDS,
    RunningGateway,
    Wire,
    form,
    post,
    problem_of,
    run_gateway,
    split_response,
    wait_until,
)
from tests.slow_disk import SlowDisk, evict

SLOW_FILE = b"slow" * 100_000
GET_SLOW = b"GET /slow/file HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
GET_FAST = b"GET /fast/file HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"


def config(slow: Path, fast: Path, **keys: Any) -> dict[str, Any]:
    store = {"if_exists": "replace", **({"sync_timeout": keys.pop("sync")} if "sync" in keys else {})}
    return {
        "routes": [
            {"name": "slow", "match": {"prefix": "/slow/"}, "files": {"directory": str(slow)}, **keys},
            {"name": "fast", "match": {"prefix": "/fast/"}, "files": {"directory": str(fast)}},
            {"name": "in", "match": {"path": "/in"}, "store": {"directory": str(slow), **store}, **keys},
            {"name": "fast-in", "match": {"path": "/fast-in"}, "store": {"directory": str(fast), **store}},
        ],
    }


def upload(target: str) -> bytes:
    parts = [(f'name="f"; filename="{name}"', b"x" * 700_000) for name in ("a", "b")]
    return post(form(*parts), target=target)


@pytest.fixture
def fast(tmp_path: Path) -> Path:
    directory = tmp_path / "fast"
    directory.mkdir()
    (directory / "file").write_bytes(b"fast")
    return directory


async def assert_others_are_served(gateway: RunningGateway) -> None:
    assert split_response(await gateway.request(GET_FAST))[2] == b"fast"
    assert split_response(await gateway.request(upload("/fast-in")))[0] == 201


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


async def begin(gateway: RunningGateway, request: bytes) -> Wire:
    client = await gateway.connect()
    await client.send(request)
    return client


@pytest.mark.parametrize("operation", ["LOOKUP", "GETATTR", "OPEN", "READ", "FLUSH"])
async def test_file_that_waits_for_its_disk_delays_no_other_request(
    slow_disk: SlowDisk, fast: Path, operation: str, every_lane: str
) -> None:
    await asyncio.to_thread((slow_disk.directory / "file").write_bytes, SLOW_FILE)
    await asyncio.to_thread(evict, slow_disk.directory / "file")
    async with run_gateway(config(slow_disk.directory, fast)) as gateway:
        await slow_disk.hold(operation)
        client = await begin(gateway, GET_SLOW)
        await slow_disk.wait_held()
        await assert_others_are_served(gateway)
        await slow_disk.release()
        assert split_response(await client.read_to_end())[2] == SLOW_FILE
        await client.close()


@pytest.mark.parametrize(
    "operation",
    [
        *("STATFS", "LOOKUP", "GETATTR", "MKDIR", "OPENDIR", "CREATE", "WRITE", "FSYNC", "FLUSH"),
        *("LINK", "RENAME", "UNLINK", "RMDIR", "FSYNCDIR"),
    ],
)
async def test_upload_that_waits_for_its_disk_delays_no_other_request(
    slow_disk: SlowDisk, fast: Path, operation: str
) -> None:
    await asyncio.to_thread((slow_disk.directory / "a").write_bytes, b"old")
    async with run_gateway(config(slow_disk.directory, fast)) as gateway:
        await gateway.request(GET_SLOW)  # the sweep of the start is over
        await slow_disk.hold(operation)
        client = await begin(gateway, upload("/in"))
        await slow_disk.wait_held()
        await assert_others_are_served(gateway)
        await slow_disk.release()
        assert split_response(await client.read_to_end())[0] == 201
        await client.close()
    assert await asyncio.to_thread(names, slow_disk.directory) == {"a", "b"}


@pytest.fixture
def disk_thread_count() -> Iterator[list[int]]:
    """Count the threads for disks that a test adds."""
    before = sum(thread.name == "disk" for thread in threading.enumerate())
    counts: list[int] = []
    yield counts
    assert all(count - before <= 8 + 8 for count in counts), counts


async def test_requests_to_a_disk_that_does_not_answer_get_503_and_do_not_pile_up(
    slow_disk: SlowDisk, fast: Path, disk_thread_count: list[int]
) -> None:
    await asyncio.to_thread((slow_disk.directory / "file").write_bytes, SLOW_FILE)
    async with run_gateway(config(slow_disk.directory, fast, timeouts={"idle": "100ms"})) as gateway:
        await slow_disk.hold("LOOKUP", "GETATTR", "STATFS")
        for _ in range(3):
            responses = await asyncio.gather(*(gateway.request(GET_SLOW, upload("/in")) for _ in range(20)))
            problems = [problem_of(response.partition(b"HTTP/1.1 503")[0] or response) for response in responses]
            assert {problem["code"] for problem in problems} == {"disk_slow"}
            disk_thread_count.append(sum(thread.name == "disk" for thread in threading.enumerate()))
        await assert_others_are_served(gateway)
        # Every thread is stuck for longer than the limit: refused at once, and no call waits.
        assert problem_of(await gateway.request(upload("/in")))["code"] == "disk_slow"
        assert len(await slow_disk.held()) <= 8
        slow_lines = [line for line in gateway.log if line["route"] in ("slow", "in")]
        assert {(line["status"], line["blame"], line["code"]) for line in slow_lines} == {(503, "gateway", "disk_slow")}
        await slow_disk.release()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while split_response(await gateway.request(GET_SLOW))[2] != SLOW_FILE:
                pass


@pytest.mark.parametrize("operation", ["WRITE", "FSYNC", "RENAME", "LINK"])
async def test_upload_that_its_disk_holds_for_too_long_gets_503_and_is_removed_when_the_disk_answers(
    slow_disk: SlowDisk, fast: Path, operation: str
) -> None:
    await asyncio.to_thread((slow_disk.directory / "a").write_bytes, b"old")
    async with run_gateway(config(slow_disk.directory, fast, timeouts={"idle": "200ms"}, sync="200ms")) as gateway:
        await slow_disk.hold(operation)
        problem = problem_of(await gateway.request(upload("/in")))
        assert (problem["status"], problem["code"]) == (503, "disk_slow")
        assert ("sync_timeout" if operation != "WRITE" else "idle") in problem["detail"]
        assert (await gateway.wait_log_line())["blame"] == "gateway"
        await slow_disk.release()
        # A commit that was under way may have ended whole.
        await wait_until(lambda: names(slow_disk.directory) in ({"a"}, {"a", "b"}))


@pytest.mark.parametrize(
    ("operation", "size"),
    [*((each, 3000) for each in ("STATFS", "CREATE", "WRITE", "FSYNC")), ("WRITE", 3_000_000), ("RENAME", 700_000)],
)
async def test_raw_upload_that_its_disk_holds_is_charged_to_the_disk_and_not_to_the_client(
    slow_disk: SlowDisk, fast: Path, operation: str, size: int
) -> None:
    """One that was wholly received got 408, blamed on the client: the rate of the client counted on."""
    timeouts = {"idle": "300ms", "min_rate": "10MB/s", "grace": "50ms"}
    async with run_gateway(config(slow_disk.directory, fast, timeouts=timeouts, sync="300ms")) as gateway:
        await slow_disk.hold(operation)
        client = await gateway.connect()
        await client.send_all(
            [post(b"x" * size, target="/in", content_type="x/y", headers='Content-Disposition: a; filename="raw"\r\n')]
        )
        problem = problem_of(await client.read_to_end())
        assert (problem["status"], problem["code"]) == (503, "disk_slow")
        line = await gateway.wait_log_line()
        assert (line["blame"], line["outcome"]) == ("gateway", "disk_failed")
        assert max(line["wait_seconds"], key=line["wait_seconds"].get) == "disk_write"
        await client.close()
        await slow_disk.release()
    assert await asyncio.to_thread(names, slow_disk.directory) in (set(), {"raw"})


@pytest.mark.parametrize("operation", ["CREATE", "WRITE"])
async def test_raw_upload_to_a_full_disk_is_507(slow_disk: SlowDisk, fast: Path, operation: str) -> None:
    async with run_gateway(config(slow_disk.directory, fast)) as gateway:
        await slow_disk.fail(operation, errno.ENOSPC)
        request = post(
            b"x" * 700_000, target="/in", content_type="x/y", headers='Content-Disposition: a; filename="raw"\r\n'
        )
        assert problem_of(await gateway.request(request))["status"] == 507
        assert (await gateway.wait_log_line())["blame"] == "gateway"
        await slow_disk.release()
    assert await asyncio.to_thread(names, slow_disk.directory) == set()


@pytest.mark.slow
async def test_disk_that_does_not_answer_does_not_keep_the_process(slow_disk: SlowDisk, fast: Path) -> None:
    """Threads of a ThreadPoolExecutor are joined at the exit, however long their call takes."""
    await asyncio.to_thread((slow_disk.directory / "file").write_bytes, SLOW_FILE)
    await asyncio.to_thread(evict, slow_disk.directory / "file")
    settings = {"listen": "127.0.0.1:0", "ops": {"listen": "127.0.0.1:0"}, "drain_timeout": "100ms"}
    path = fast / "config.yaml"
    path.write_text(json.dumps({**settings, **config(slow_disk.directory, fast)}))
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "gateway", "run", "--config", str(path))
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    ready = (await process.stdout.readline()).decode()
    port = re.search(r"listening on 127\.0\.0\.1:(\d+)", ready)
    assert port is not None, ready
    await slow_disk.hold("READ", "LOOKUP")
    _, writer = await asyncio.open_connection("127.0.0.1", int(port[1]))
    writer.write(GET_SLOW)
    await slow_disk.wait_held()
    process.terminate()
    # The process has ended, all but its thread: the kernel removes that when the disk answers.
    stat = Path(f"/proc/{process.pid}/stat")
    await wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
    await slow_disk.release()
    output, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert not list(stray_lines(output.decode()))
    writer.close()

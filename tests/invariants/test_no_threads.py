"""Out of threads: a call that none can be started for is the gateway's fault, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import Fault, FaultKind
from gateway.storage import Disks
from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    forward_config,
    post,
    problem_of,
    responding,
    run_gateway,
    split_response,
    wait_until,
)

GET = b"GET /a HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
PUT_HEAD = b"PUT /a HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
#: Of a stack that does not fit.
STACK_BYTES = 2**30
BODY = os.urandom(100_000)
Block = Callable[[], AbstractAsyncContextManager[None]]


@contextlib.contextmanager
def no_room_for_stacks() -> Iterator[None]:
    """Have the system refuse every thread until the end of the block: EAGAIN, as where a limit of tasks is reached.

    RLIMIT_NPROC does not bind root.
    """
    size_before, limits_before = threading.stack_size(STACK_BYTES), resource.getrlimit(resource.RLIMIT_AS)
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + STACK_BYTES // 2, limits_before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits_before)
        threading.stack_size(size_before)


@pytest.fixture
def out_of_threads(monkeypatch: pytest.MonkeyPatch) -> Block:
    """Return a block in which no thread can be started; it begins when those that the test has started have ended."""
    monkeypatch.setattr("gateway.threads._IDLE_SECONDS", 0.0)
    before = set(threading.enumerate())

    @contextlib.asynccontextmanager
    async def block() -> AsyncIterator[None]:
        await wait_until(lambda: before.issuperset(threading.enumerate()))
        with no_room_for_stacks():
            yield

    return block


def assert_out_of_threads(response: bytes, line: dict[str, Any]) -> None:
    problem = problem_of(response)
    assert problem["code"] == "out_of_threads"
    assert "pids.max" in problem["detail"]
    status, headers, _ = split_response(response)
    assert (status, headers["retry-after"]) == (503, "1")
    assert (line["code"], line["blame"], line["outcome"]) == ("out_of_threads", "gateway", "refused")
    assert line["reason"] == "can't start new thread"


def directory_config(directory: Path) -> dict[str, Any]:
    routes = [
        {"name": "up", "match": {"prefix": "/", "methods": ["PUT"]}, "store": {"directory": str(directory)}},
        {"name": "down", "match": {"prefix": "/"}, "files": {"directory": str(directory)}},
    ]
    return {"routes": routes}


async def test_upload_that_cannot_be_stored_without_a_thread_leaves_nothing(
    tmp_path: Path, out_of_threads: Block
) -> None:
    """It was 500 disk_failed."""
    request = PUT_HEAD % len(BODY) + BODY
    async with run_gateway(directory_config(tmp_path)) as gateway:
        async with out_of_threads():
            assert_out_of_threads(await gateway.request(request), await gateway.wait_log_line())
            assert os.listdir(tmp_path) == []
        assert split_response(await gateway.request(request))[0] == 201


@pytest.mark.parametrize("code", ["out_of_threads", "client_left"])
async def test_upload_that_ends_without_a_thread_to_remove_it_is_removed_once_one_starts(
    tmp_path: Path, out_of_threads: Block, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stayed until the next start, and its descriptors until the end."""
    monkeypatch.setattr("gateway.storage.threads._CLEANUP_SECONDS", 0.01)
    size = 4 * 2**20
    async with run_gateway(directory_config(tmp_path)) as gateway:
        client = await gateway.connect()
        await client.send(PUT_HEAD % size)
        await wait_until(lambda: os.listdir(tmp_path))
        async with out_of_threads():
            if code == "client_left":
                client.reset()
            else:
                await client.send_all([bytes(size)])
                assert problem_of(await client.read_to_end())["code"] == code
            assert (await gateway.wait_log_line())["code"] == code
            assert os.listdir(tmp_path) != []
        await wait_until(lambda: not os.listdir(tmp_path))
        await client.close()


async def test_cleanup_runs_once_a_thread_starts_and_is_not_waited_for(
    tmp_path: Path, out_of_threads: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was dropped: files that were sent to clients stayed open."""
    monkeypatch.setattr("gateway.storage.threads._CLEANUP_SECONDS", 0.01)
    threads = Disks().of(str(tmp_path), TIMEOUT_SECONDS)
    cleaned: list[str] = []
    async with out_of_threads():
        await threads.wait(threads.clean_up(lambda: cleaned.append("file"), []))
        with pytest.raises(Fault) as caught:
            await threads.run(lambda: None)
        assert caught.value.kind is FaultKind.OUT_OF_THREADS
        assert cleaned == []
    await wait_until(lambda: cleaned)


async def test_file_that_cannot_be_opened_without_a_thread_is_the_gateways_fault(
    tmp_path: Path, out_of_threads: Block
) -> None:
    """It was 500 disk_failed."""
    (tmp_path / "a").write_bytes(BODY)
    async with run_gateway(directory_config(tmp_path)) as gateway:
        async with out_of_threads():
            assert_out_of_threads(await gateway.request(GET), await gateway.wait_log_line())
        assert split_response(await gateway.request(GET))[2] == BODY


@pytest.mark.parametrize("name", ["digest", "compress", "decompress"])
async def test_filter_that_computes_in_a_thread_blames_the_gateway(out_of_threads: Block, name: str) -> None:
    """It was 502 upstream_closed."""
    request = post(zlib.compress(BODY), content_type="application/octet-stream")
    async with RawUpstream(responding(OK)) as upstream:
        keys = {"ejection": {"failures": 1}}
        async with run_gateway(forward_config(upstream.url, filters=[{name: {}}], upstream_keys=keys)) as gateway:
            async with out_of_threads():
                assert_out_of_threads(await gateway.request(request), await gateway.wait_log_line())
            assert split_response(await gateway.request(request))[0] == 200


@pytest.mark.parametrize("on_error", ["refuse", "pass"])
async def test_scanner_whose_name_cannot_be_looked_up_without_a_thread_is_not_to_blame(
    out_of_threads: Block, on_error: str
) -> None:
    """It was 503 scanner_failed."""
    scan = {"scan": {"clamd": "localhost:9", "on_error": on_error}}
    request = post(BODY, content_type="application/octet-stream")
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, filters=[scan])) as gateway:
            async with out_of_threads():
                response = await gateway.request(request)
            if on_error == "pass":
                assert split_response(response)[0] == 200
            else:
                assert_out_of_threads(response, await gateway.wait_log_line())


@pytest.mark.new_connection(reason="its name is looked up")
async def test_name_that_cannot_be_looked_up_without_a_thread_is_the_gateways_fault(out_of_threads: Block) -> None:
    """It was 502 dns_error, and the endpoint was ejected."""
    async with RawUpstream(responding(OK)) as upstream:
        url = upstream.url.replace("127.0.0.1", "localhost")
        keys = {"ejection": {"failures": 1}}
        async with run_gateway(forward_config(url, upstream_keys=keys)) as gateway:
            async with out_of_threads():
                assert_out_of_threads(await gateway.request(GET), await gateway.wait_log_line())
            # A lookup that failed is repeated after a second.
            while (response := await gateway.request(GET))[9:12] == b"503":
                assert_out_of_threads(response, await gateway.wait_log_line())
            assert split_response(response)[0] == 200


async def test_endpoint_stays_up_while_there_is_no_thread_to_look_up_its_name(
    out_of_threads: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.upstream.resolver._FRESH_SECONDS", 0.0)
    monkeypatch.setattr("gateway.upstream.resolver._FAILED_SECONDS", 0.0)
    monkeypatch.setattr("gateway.upstream.resolver._STALE_SECONDS", 0.0)
    health = {"path": "/", "interval": "5ms", "timeout": "5s", "passes": 1, "fails": 1}
    refused: list[object] = []
    start = threading.Thread.start

    def start_and_count(self: threading.Thread) -> None:
        try:
            start(self)
        except RuntimeError:
            refused.append(self)
            raise

    monkeypatch.setattr(threading.Thread, "start", start_and_count)
    async with RawUpstream(responding(OK)) as upstream:
        url = upstream.url.replace("127.0.0.1", "localhost")
        async with run_gateway(forward_config(url, upstream_keys={"health": health})) as gateway:
            await upstream.connected.wait()
            async with out_of_threads():
                await wait_until(lambda: len(refused) > 4)
            count = len(upstream.wires)
            await wait_until(lambda: len(upstream.wires) > count)
            assert all(each.is_up for each in gateway.stats.upstreams["up"].endpoints.values())


async def test_reload_without_a_thread_changes_nothing_and_says_why(out_of_threads: Block) -> None:
    async with run_gateway(forward_config("http://127.0.0.1:9")) as gateway:
        config = gateway.gateway._runtime.config
        async with out_of_threads():
            (problem,) = await gateway.gateway.prepare_reload(lambda: config)
        assert problem.startswith("out_of_threads: ")
        assert await gateway.gateway.prepare_reload(lambda: config) == []
        gateway.gateway.abort_reload()

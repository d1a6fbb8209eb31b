"""Out of descriptors: what cannot be opened is the gateway's fault, in every place that opens something."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import FaultKind
from gateway.transfer import exhaustion_fault
from tests.peers import (
    OK,
    TIMEOUT_SECONDS,
    RawUpstream,
    RunningGateway,
    forward_config,
    post,
    problem_of,
    responding,
    run_gateway,
    split_response,
)
from tests.s3_server import S3Server

GET = b"GET /a HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"


@contextlib.contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Leave the process this many free descriptors until the end of the block."""
    # What is only closed by the collector would free descriptors within the block.
    gc.collect()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + count, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        for descriptor in fillers[:count]:
            os.close(descriptor)
        del fillers[:count]
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in fillers:
            os.close(descriptor)


async def ask(gateway: RunningGateway, request: bytes, *, free: int = 0) -> bytes:
    """Send a request to a gateway that has this many free descriptors; the connection is accepted before."""
    client = await gateway.connect()
    connections = gateway.gateway._traffic.connections
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not connections:  # noqa: ASYNC110 (no event exists for an accepted connection)
            await asyncio.sleep(0.001)
        # A thread looks for unfinished files of killed gateways: closing the directory would free a descriptor.
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "sweep"))
    with free_descriptors(free):
        await client.send(request)
        response = await client.read_to_end()
    await client.close()
    return response


def assert_out_of_descriptors(response: bytes, line: dict[str, Any]) -> None:
    assert problem_of(response)["code"] == "out_of_descriptors"
    status, headers, _ = split_response(response)
    assert (status, headers["retry-after"]) == (503, "1")
    assert (line["code"], line["blame"], line["outcome"]) == ("out_of_descriptors", "gateway", "refused")
    assert "Too many open files" in line["reason"]


@pytest.mark.new_connection(reason="opening one fails")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_connecting_without_a_descriptor_is_the_gateways_fault(host: str) -> None:
    """It was blamed on the upstream: 502 connect_refused, or dns_error."""
    async with RawUpstream(responding(OK)) as upstream:
        url = upstream.url.replace("127.0.0.1", host)
        async with run_gateway(forward_config(url)) as gateway:
            assert_out_of_descriptors(await ask(gateway, GET), await gateway.wait_log_line())


async def test_fetching_without_a_descriptor_is_the_gateways_fault() -> None:
    async with RawUpstream(responding(OK)) as upstream:
        fetch = {"allow": [upstream.url + "/"], "private_networks": "allow"}
        config = {"routes": [{"name": "f", "match": {"prefix": "/"}, "fetch": fetch}]}
        async with run_gateway(config) as gateway:
            request = GET.replace(b"/a ", f"/{upstream.url}/a ".encode())
            assert_out_of_descriptors(await ask(gateway, request), await gateway.wait_log_line())


def directory_config(directory: Path) -> dict[str, Any]:
    routes = [
        {"name": "up", "match": {"prefix": "/", "methods": ["POST"]}, "store": {"directory": str(directory)}},
        {"name": "down", "match": {"prefix": "/"}, "files": {"directory": str(directory)}},
    ]
    return {"routes": routes}


async def test_file_that_cannot_be_opened_without_a_descriptor_is_not_missing(tmp_path: Path) -> None:
    """It was 404."""
    (tmp_path / "a").write_bytes(b"a")
    async with run_gateway(directory_config(tmp_path)) as gateway:
        assert_out_of_descriptors(await ask(gateway, GET), await gateway.wait_log_line())


@pytest.mark.parametrize("free", [0, 1])
async def test_upload_that_cannot_be_stored_without_a_descriptor_leaves_nothing(tmp_path: Path, free: int) -> None:
    """Neither the staging directory nor, with one descriptor for it, its file can be opened."""
    async with run_gateway(directory_config(tmp_path)) as gateway:
        response = await ask(gateway, post(b"data", content_type="text/plain"), free=free)
        assert_out_of_descriptors(response, await gateway.wait_log_line())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("free", range(6))
async def test_file_is_sent_whole_with_as_many_descriptors_as_it_needs(tmp_path: Path, free: int) -> None:
    """A download was cut as a bug: with fewer descriptors than a lane needs, another is taken."""
    data = os.urandom(2_000_000)
    (tmp_path / "a").write_bytes(data)
    async with run_gateway(directory_config(tmp_path)) as gateway:
        response = await ask(gateway, GET, free=free)
        line = await gateway.wait_log_line()
    if free == 0:
        assert_out_of_descriptors(response, line)
    else:
        assert (split_response(response)[2], line["outcome"]) == (data, "complete")


async def test_scanner_that_cannot_be_connected_without_a_descriptor_is_not_to_blame(tmp_path: Path) -> None:
    """It was scanner_failed."""
    config = directory_config(tmp_path)
    config["routes"][0]["filters"] = [{"scan": {"clamd": "127.0.0.1:9"}}]
    async with run_gateway(config) as gateway:
        # For the staging directory and the file.
        response = await ask(gateway, post(b"data", content_type="text/plain"), free=2)
        assert_out_of_descriptors(response, await gateway.wait_log_line())


async def test_object_store_that_cannot_be_connected_without_a_descriptor_is_not_to_blame(s3_server: S3Server) -> None:
    bucket = {"url": "s3://bucket/in", "endpoint": s3_server.url, "region": "us-east-1"}
    # The client library tries again for as long as `idle`.
    route = {"name": "down", "match": {"prefix": "/"}, "files": bucket, "timeouts": {"idle": "500ms"}}
    async with run_gateway({"routes": [route]}) as gateway:
        assert_out_of_descriptors(await ask(gateway, GET), await gateway.wait_log_line())


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
@pytest.mark.parametrize("is_body", [False, True])
async def test_upstream_is_not_to_blame_where_the_system_has_nothing_left_to_connect_it(
    error: int, monkeypatch: pytest.MonkeyPatch, *, is_body: bool
) -> None:
    def fail(_address: object) -> socket.socket:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("gateway.upstream.client.open_socket", fail)
    async with RawUpstream(responding(OK)) as upstream:
        ejection = {"ejection": {"failures": 1}}
        urls = [upstream.url, upstream.url.replace("127.0.0.1", "localhost")]
        async with run_gateway(forward_config(urls, upstream_keys=ejection)) as gateway:
            request = post(b"data", content_type="text/plain") if is_body else GET
            response = await gateway.request(request)
            code = "out_of_memory" if error in (errno.ENOBUFS, errno.ENOMEM) else "out_of_descriptors"
            assert problem_of(response)["code"] == code
            status, headers, _ = split_response(response)
            assert (status, headers["retry-after"]) == (503, "1")
            line = await gateway.wait_log_line()
            assert (line["blame"], line["outcome"], line["level"]) == ("gateway", "refused", "warning")
            assert all(each.is_up for each in gateway.stats.upstreams["up"].endpoints.values())


def test_only_failures_without_descriptors_or_memory_are_the_gateways() -> None:
    with free_descriptors(0), pytest.raises(OSError, match="Too many open files") as caught:
        socket.socket()
    fault = exhaustion_fault(caught.value)
    assert fault is not None
    assert fault.kind is FaultKind.OUT_OF_DESCRIPTORS
    assert exhaustion_fault(ConnectionRefusedError(111, "refused")) is None

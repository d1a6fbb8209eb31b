"""store and files on an S3 server (moto): constant memory, complete or aborted uploads, ranges."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gateway.observe.stats import Direction
from tests.integration.test_memory import gateway_process, memory, send_form
from tests.peers import (
    RawUpstream,
    Wire,
    chunked,
    form,
    post,
    problem_of,
    run_gateway,
    split_response,
    wait_until,
)
from tests.s3_server import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]
DATA = os.urandom(20_000_001)
SMALL = b"small"
FILE = ('name="f"; filename="a b.bin"', DATA)


def config(s3_server: S3Server, **action: Any) -> dict[str, Any]:
    bucket = {"url": "s3://bucket/in/here", "endpoint": s3_server.url, "region": "us-east-1"}
    return {
        "routes": [
            {"name": "up", "match": {"prefix": "/up"}, "store": {**bucket, **action}},
            {"name": "down", "match": {"prefix": "/files/"}, "files": bucket},
        ]
    }


def get(name: str, headers: str = "") -> bytes:
    return f"GET /files/{name} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n{headers}\r\n".encode()


async def test_files_are_stored_and_served_with_ranges(s3_server: S3Server) -> None:
    async with run_gateway(config(s3_server)) as gateway:
        parts = (FILE, ('name="x"', b"1"), ('name="g"; filename="s.txt"', SMALL), ('name="h"; filename="e"', b""))
        status, _, text = split_response(await gateway.request(post(form(*parts), target="/up")))
        files = json.loads(text)["files"]
        assert (status, [file["name"] for file in files]) == (201, ["a b.bin", "s.txt", "e"])
        assert files[0]["sha256"] == hashlib.sha256(DATA).hexdigest()
        assert sorted(s3_server.keys()) == ["in/here/a b.bin", "in/here/e", "in/here/s.txt"]
        assert s3_server.open_uploads() == 0
        status, headers, body = split_response(await gateway.request(get("a%20b.bin")))
        assert (status, body == DATA, headers["content-length"]) == (200, True, str(len(DATA)))
        status, part, body = split_response(await gateway.request(get("a%20b.bin", "Range: bytes=1000-15000000\r\n")))
        assert (status, body == DATA[1000:15_000_001]) == (206, True)
        assert part["content-range"] == f"bytes 1000-15000000/{len(DATA)}"
        unchanged = await gateway.request(get("a%20b.bin", f"If-None-Match: {headers['etag']}\r\n"))
        assert split_response(unchanged)[0] == 304
        assert split_response(await gateway.request(get("e")))[2] == b""
        assert problem_of(await gateway.request(get("none")))["code"] == "file_not_found"
        assert problem_of(await gateway.request(get("../here/s.txt")))["code"] == "bad_target"


@pytest.mark.parametrize(
    ("if_exists", "status", "names"),
    [("rename", 201, ["s-1.txt", "s.txt"]), ("reject", 409, ["s.txt"]), ("replace", 201, ["s.txt"])],
)
async def test_existing_object_is_handled_as_configured(
    s3_server: S3Server, if_exists: str, status: int, names: list[str]
) -> None:
    async with run_gateway(config(s3_server, if_exists=if_exists)) as gateway:
        for number, expected in ((1, 201), (2, status)):
            body = form(('name="f"; filename="s.txt"', b"%d" % number))
            assert split_response(await gateway.request(post(body, target="/up")))[0] == expected
        assert [key.removeprefix("in/here/") for key in sorted(s3_server.keys())] == names


@pytest.mark.parametrize("cause", ["client disconnects", "malformed", "limit"])
async def test_failed_upload_leaves_no_object_and_no_open_upload(s3_server: S3Server, cause: str) -> None:
    keys = config(s3_server)
    if cause == "limit":
        keys["routes"][0]["limits"] = {"max_body": 30_000_000}
    async with run_gateway(keys) as gateway:
        body = form(('name="g"; filename="s.txt"', SMALL), FILE, ('name="h"; filename="big"', DATA))
        request = post(body, target="/up")
        if cause == "client disconnects":
            client = await gateway.connect()
            await client.send_all([request[: len(DATA)]])
            await wait_until(lambda: gateway.stats.routes["up"].transfers[Direction.UPLOAD].bytes_moved > 10**7)
            client.reset()
            assert (await gateway.wait_log_line())["outcome"] == "client_left"
        elif cause == "malformed":
            assert (
                problem_of(await gateway.request(post(body[:-30] + b"x" * 30, target="/up")))["code"] == "bad_multipart"
            )
        else:
            head = request.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
            assert problem_of(await gateway.request(head + chunked(body)))["code"] == "body_too_large"
        assert await asyncio.to_thread(s3_server.keys) == []
        assert await asyncio.to_thread(s3_server.open_uploads) == 0


async def test_missing_bucket_is_502(s3_server: S3Server) -> None:
    keys = config(s3_server)
    keys["routes"][0]["store"]["url"] = "s3://no-such-bucket/x"
    async with run_gateway(keys) as gateway:
        problem = problem_of(await gateway.request(post(form(('name="f"; filename="a"', SMALL)), target="/up")))
        assert (problem["status"], problem["code"]) == (502, "object_store_failed")
        assert "127.0.0.1" not in problem["detail"]


@pytest.mark.parametrize("target", ["/up", "/files/a"])
async def test_bucket_that_never_responds_is_502_after_idle(s3_server: S3Server, target: str) -> None:
    """It held the client for three minutes."""

    async def say_nothing(wire: Wire) -> None:
        await wire.read_to_end()

    async with RawUpstream(say_nothing) as store:
        keys = config(S3Server(store.url))
        for route in keys["routes"]:
            route["timeouts"] = {"idle": "200ms", "min_rate": 0}
        async with run_gateway(keys) as gateway:
            request = post(form(('name="f"; filename="a"', SMALL)), target=target) if target == "/up" else get("a")
            problem = problem_of(await gateway.request(request))
            assert (problem["status"], problem["code"]) == (502, "object_store_failed")


@pytest.mark.soak
@pytest.mark.timeout(120)
async def test_slow_download_of_an_object_is_one_request_to_the_store(s3_server: S3Server) -> None:
    """The client of the store repeated a request after 30 seconds, and failed after three minutes."""
    size, requests = 60 * 2**20, []

    async def serve(wire: Wire) -> None:
        while head := await wire.read_head():
            requests.append(head.partition(b" ")[0])
            fixed = b'ETag: "1"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n'
            status = b"200 OK\r\n" if head.startswith(b"HEAD") else b"206 Partial Content\r\n"
            fixed += b"" if head.startswith(b"HEAD") else b"Content-Range: bytes 0-%d/%d\r\n" % (size - 1, size)
            await wire.send(b"HTTP/1.1 " + status + fixed + b"Content-Length: %d\r\n\r\n" % size)
            if head.startswith(b"GET"):
                wire.writer.write(bytes(size))

    async with RawUpstream(serve) as store, run_gateway(config(S3Server(store.url))) as gateway:
        client = await gateway.connect()
        await client.send(get("a"))
        received = 0
        while received < size:
            received += len(await client.read_exactly(min(2**20, size - received)))
            await asyncio.sleep(0.6)  # a slow client
        await client.close()
        assert requests == [b"HEAD", b"GET"]


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_upload_of_one_gib_to_an_object_store_uses_constant_memory(s3_server: S3Server, tmp_path: Path) -> None:
    async with gateway_process(config(s3_server), tmp_path) as (pid, port):
        # Upload a small file first, because the first upload loads the client library of the object store.
        assert b" 201 " in await asyncio.to_thread(send_form, port, "/up", 2**20)
        idle = memory(pid, "VmRSS")
        assert b" 201 " in await asyncio.to_thread(send_form, port, "/up", 2**30)
        growth = memory(pid, "VmHWM") - idle
        print(f"idle {idle / 2**20:.1f} MiB, peak {(growth + idle) / 2**20:.1f} MiB")
        assert growth < 64 * 2**20

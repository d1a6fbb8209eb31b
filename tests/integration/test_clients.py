"""Real clients through the gateway to real upstreams: every body arrives identical, compared by SHA-256."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from requests_toolbelt import MultipartEncoder

from tests.conftest import require_tool
from tests.integration.services import SERVICES, run_service
from tests.peers import forward_config, run_gateway

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
Files = list[tuple[str, Path]]


def by_requests(url: str, files: Files) -> Any:
    """Send with a Content-Length; the encoder reads each part while it sends it."""
    parts: list[tuple[str, Any]] = [("note", "hello")]
    handles = [path.open("rb") for _, path in files]
    parts += [(field, (path.name, handle, "audio/wav")) for (field, path), handle in zip(files, handles, strict=True)]
    encoder = MultipartEncoder(fields=parts)
    try:
        response = requests.post(url, data=encoder, headers={"Content-Type": encoder.content_type}, timeout=30)
    finally:
        for handle in handles:
            handle.close()
    assert response.status_code == 200, response.text
    return response.json()


def by_httpx(url: str, files: Files) -> Any:
    handles = [path.open("rb") for _, path in files]
    parts = [(field, (path.name, handle)) for (field, path), handle in zip(files, handles, strict=True)]
    try:
        response = httpx.post(url, data={"note": "hello"}, files=parts, timeout=30, trust_env=False)
    finally:
        for handle in handles:
            handle.close()
    assert response.status_code == 200, response.text
    return response.json()


def by_curl(url: str, files: Files) -> Any:
    curl = require_tool("curl")
    arguments = [curl, "-sS", "--fail-with-body", "-F", "note=hello"]
    for field, path in files:
        arguments += ["-F", f"{field}=@{path}"]
    done = subprocess.run([*arguments, url], capture_output=True, check=False, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def by_aiohttp(url: str, files: Files) -> Any:
    """Send chunked: the client of aiohttp sends forms with files without a length."""

    async def send() -> Any:
        form = aiohttp.FormData(quote_fields=False)
        form.add_field("note", "hello")
        for field, path in files:
            form.add_field(field, path.open("rb"), filename=path.name)
        async with aiohttp.ClientSession() as session, session.post(url, data=form) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    return asyncio.run(send())


CLIENTS: dict[str, Callable[[str, Files], Any]] = {
    "curl": by_curl,
    "requests": by_requests,
    "httpx": by_httpx,
    "aiohttp": by_aiohttp,
}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    sizes = {"a.wav": 5_000_003, "b c.wav": 0, "ü.bin": 70_000}
    chosen: Files = []
    for name, size in sizes.items():
        path = tmp_path / name
        path.write_bytes(os.urandom(size))
        chosen.append(("file", path))
    return chosen


def expected(files: Files) -> list[tuple[str, int, str]]:
    return [(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) for _, path in files]


@pytest.mark.parametrize("service", SERVICES)
async def test_several_files_of_every_client_arrive_identical(service: str, files: Files, tmp_path: Path) -> None:
    async with run_service(service, tmp_path) as upstream, run_gateway(forward_config(upstream)) as gateway:
        for name, send in CLIENTS.items():
            got = await asyncio.to_thread(send, gateway.url + "/upload", files)
            assert got["fields"] == {"note": "hello"}, name
            assert [(file["name"], file["size"], file["sha256"]) for file in got["files"]] == expected(files), name
        assert gateway.stats.routes["r"].parts == {"file": 3 * len(CLIENTS), "field": len(CLIENTS)}
        assert all(line["outcome"] == "complete" for line in gateway.log)


@pytest.mark.parametrize("service", SERVICES)
async def test_raw_bodies_with_and_without_a_length_arrive_identical(service: str, tmp_path: Path) -> None:
    data = os.urandom(3_000_001)
    digest = hashlib.sha256(data).hexdigest()

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(data), 100_000):
            yield data[at : at + 100_000]

    def send(url: str, body: Any) -> Any:
        kind = {"Content-Type": "application/octet-stream"}
        return requests.post(url, data=body, headers=kind, timeout=30).json()

    async with run_service(service, tmp_path) as upstream, run_gateway(forward_config(upstream)) as gateway:
        for body in (data, pieces()):
            got = await asyncio.to_thread(send, gateway.url + "/upload", body)
            assert got["files"][0]["sha256"] == digest


async def test_stored_file_is_downloaded_identical(files: Files, tmp_path: Path) -> None:
    directory = tmp_path / "in"
    directory.mkdir()
    config = {
        "routes": [
            {"name": "up", "match": {"prefix": "/up"}, "store": {"directory": str(directory), "if_exists": "replace"}},
            {"name": "down", "match": {"prefix": "/files/"}, "files": {"directory": str(directory)}},
        ]
    }

    def by_httpx_store(url: str) -> Any:
        with files[0][1].open("rb") as handle:
            response = httpx.post(url, files={"file": ("a.wav", handle)}, timeout=30, trust_env=False)
        assert response.status_code == 201
        return response.json()["files"][0]

    def fetch(url: str) -> bytes:
        return requests.get(url, timeout=30).content

    async with run_gateway(config) as gateway:
        stored = await asyncio.to_thread(by_httpx_store, gateway.url + "/up")
        name, size, digest = expected(files)[0]
        assert (stored["name"], stored["size"], stored["sha256"]) == (name, size, digest)
        data = await asyncio.to_thread(fetch, gateway.url + "/files/a.wav")
        assert hashlib.sha256(data).hexdigest() == digest


async def test_curl_resumes_a_download(tmp_path: Path) -> None:
    curl = require_tool("curl")
    data = os.urandom(2_000_000)
    (tmp_path / "model.bin").write_bytes(data)
    target = tmp_path / "got.bin"
    target.write_bytes(data[:700_001])
    config = {"routes": [{"name": "down", "match": {"prefix": "/f"}, "files": {"directory": str(tmp_path)}}]}
    async with run_gateway(config) as gateway:
        process = await asyncio.create_subprocess_exec(
            curl, "-sS", "--fail", "-C", "-", "-o", str(target), gateway.url + "/f/model.bin"
        )
        assert await process.wait() == 0
        assert target.read_bytes() == data
        line = await gateway.wait_log_line()
        assert (line["status"], line["outcome"], line["download_bytes"]) == (206, "complete", len(data) - 700_001)

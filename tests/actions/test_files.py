"""files: ranges, conditional requests, and no access outside the directory."""

from __future__ import annotations

import asyncio
import os
import threading
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from gateway.observe.stats import Direction
from gateway.storage.page_cache import PageCache
from tests.peers import problem_of, run_gateway, split_response, wait_until
from tests.slow_disk import SlowDisk, evict

DATA = bytes(range(256)) * 4096


def config(directory: Path) -> dict[str, Any]:
    return {"routes": [{"name": "f", "match": {"prefix": "/f/"}, "files": {"directory": str(directory)}}]}


def get_request(name: str = "a.bin", headers: str = "", method: str = "GET") -> bytes:
    return f"{method} /f/{name} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n{headers}\r\n".encode()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.bin").write_bytes(DATA)
    (root / "empty.txt").write_bytes(b"")
    (root / "sub").mkdir()
    (root / "sub" / "b c.txt").write_text("inner")
    (root / ".hidden").write_text("secret")
    (tmp_path / "outside.txt").write_text("secret")
    (root / "escape.txt").symlink_to(tmp_path / "outside.txt")
    (root / "updir").symlink_to(tmp_path)
    (root / "within.bin").symlink_to("a.bin")
    os.mkfifo(root / "pipe")
    return root


async def test_file_is_streamed_with_its_validators(directory: Path) -> None:
    async with run_gateway(config(directory)) as gateway:
        status, headers, body = split_response(await gateway.request(get_request()))
        assert (status, body) == (200, DATA)
        assert headers["content-length"] == str(len(DATA))
        assert headers["accept-ranges"] == "bytes"
        assert headers["etag"].startswith('"')
        assert "last-modified" in headers
        line = await gateway.wait_log_line()
        assert (line["download"], line["download_bytes"]) == ("complete", len(DATA))


async def test_head_request_gets_the_length_and_no_body(directory: Path) -> None:
    async with run_gateway(config(directory)) as gateway:
        status, headers, body = split_response(await gateway.request(get_request(method="HEAD")))
        assert (status, headers["content-length"], body) == (200, str(len(DATA)), b"")


async def test_empty_nested_and_linked_files_are_served(directory: Path) -> None:
    async with run_gateway(config(directory)) as gateway:
        status, headers, body = split_response(await gateway.request(get_request("empty.txt")))
        assert (status, body, headers["content-type"]) == (200, b"", "text/plain")
        assert split_response(await gateway.request(get_request("sub/b%20c.txt")))[2] == b"inner"
        assert split_response(await gateway.request(get_request("within.bin")))[2] == DATA


@pytest.mark.parametrize(
    "name",
    [
        "missing.txt",
        "escape.txt",
        "updir/outside.txt",
        "sub/../a.bin",
        "sub%2f..%2fa.bin",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        ".hidden",
        "sub",
        "sub/",
        "",
        "a.bin/",
        "a.bin%00.txt",
        "pipe",
        "sub//b%20c.txt",
    ],
)
async def test_path_that_is_no_file_of_the_directory_is_404(directory: Path, name: str) -> None:
    async with run_gateway(config(directory)) as gateway:
        response = await gateway.request(get_request(name))
        assert problem_of(response)["code"] == "file_not_found"
        assert b"secret" not in response


@pytest.mark.parametrize(
    "name",
    [
        "../outside.txt",
        "%2e%2e/outside.txt",
        "..%2foutside.txt",
        "sub/../../outside.txt",
        "..%5coutside.txt",
        "sub/..%2f..%2foutside.txt",
        "%252e%252e/outside.txt",
    ],
)
async def test_path_outside_the_directory_is_400(directory: Path, name: str) -> None:
    async with run_gateway(config(directory)) as gateway:
        response = await gateway.request(get_request(name))
        assert problem_of(response)["code"] == "bad_target"
        assert b"secret" not in response


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "a.tar.gz": "application/gzip",
        "a.tgz": "application/gzip",
        "a.tar.bz2": "application/x-bzip2",
        "a.csv.xz": "application/x-xz",
        "a.tar.Z": "application/x-compress",
        "a.json.zst": "application/zstd",
        "a.html.br": "application/octet-stream",
        "a.tar": "application/x-tar",
        "a.html": "text/html",
        "a": "application/octet-stream",
        "data:text%2Fhtml,x": "application/octet-stream",
        "data:text/html,x": "application/octet-stream",
    }.items(),
)
async def test_compressed_file_is_sent_as_it_is_under_the_type_of_its_compression(
    directory: Path, name: str, kind: str
) -> None:
    path = directory / unquote(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(DATA)
    async with run_gateway(config(directory)) as gateway:
        status, headers, body = split_response(await gateway.request(get_request(name)))
        assert (status, body == DATA, headers["content-type"]) == (200, True, kind)
        assert "content-encoding" not in headers


SIZE = len(DATA)


@pytest.mark.parametrize(
    ("value", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=1000000-", 1_000_000, SIZE - 1),
        ("bytes=-5", SIZE - 5, SIZE - 1),
        (f"bytes=-{SIZE * 2}", 0, SIZE - 1),
        (f"bytes=5-{SIZE * 9}", 5, SIZE - 1),
        ("Bytes=1-2", 1, 2),
    ],
)
async def test_range_is_206_with_exactly_its_bytes(directory: Path, value: str, first: int, last: int) -> None:
    async with run_gateway(config(directory)) as gateway:
        status, headers, body = split_response(await gateway.request(get_request(headers=f"Range: {value}\r\n")))
        assert status == 206
        assert headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
        assert body == DATA[first : last + 1]


@pytest.mark.parametrize(
    "value", ["bytes=5-2", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,3-4", "bytes=" + "9" * 30 + "-"]
)
async def test_invalid_range_gets_the_whole_file(directory: Path, value: str) -> None:
    async with run_gateway(config(directory)) as gateway:
        status, _, body = split_response(await gateway.request(get_request(headers=f"Range: {value}\r\n")))
        assert (status, len(body)) == (200, SIZE)


@pytest.mark.parametrize(
    ("name", "value"), [("a.bin", f"bytes={SIZE}-"), ("a.bin", "bytes=-0"), ("empty.txt", "bytes=0-")]
)
async def test_range_after_the_end_is_416_with_the_size(directory: Path, name: str, value: str) -> None:
    async with run_gateway(config(directory)) as gateway:
        response = await gateway.request(get_request(name, headers=f"Range: {value}\r\n"))
        assert problem_of(response)["status"] == 416
        size = (directory / name).stat().st_size
        assert split_response(response)[1]["content-range"] == f"bytes */{size}"


async def test_conditions_are_evaluated_in_the_order_of_rfc_9110(directory: Path) -> None:
    modified = (directory / "a.bin").stat().st_mtime
    same, older, newer = (formatdate(modified + shift, usegmt=True) for shift in (0, -60, 60))
    async with run_gateway(config(directory)) as gateway:
        etag = split_response(await gateway.request(get_request(method="HEAD")))[1]["etag"]
        table = [
            (f"If-None-Match: {etag}\r\n", 304),
            (f'If-None-Match: W/{etag}, "x"\r\n', 304),
            ("If-None-Match: *\r\n", 304),
            ('If-None-Match: "x"\r\n', 200),
            (f"If-Modified-Since: {same}\r\n", 304),
            (f"If-Modified-Since: {older}\r\n", 200),
            ("If-Modified-Since: yesterday\r\n", 200),
            (f'If-None-Match: "x"\r\nIf-Modified-Since: {same}\r\n', 200),
            (f"If-Match: {etag}\r\n", 200),
            (f"If-Match: W/{etag}\r\n", 412),
            ('If-Match: "x"\r\n', 412),
            (f"If-Unmodified-Since: {older}\r\n", 412),
            (f"If-Unmodified-Since: {newer}\r\n", 200),
            (f"If-Range: {etag}\r\nRange: bytes=0-1\r\n", 206),
            ('If-Range: "x"\r\nRange: bytes=0-1\r\n', 200),
            (f"If-Range: W/{etag}\r\nRange: bytes=0-1\r\n", 200),
            (f"If-Range: {same}\r\nRange: bytes=0-1\r\n", 206),
            (f"If-Range: {older}\r\nRange: bytes=0-1\r\n", 200),
        ]
        for headers, expected in table:
            assert split_response(await gateway.request(get_request(headers=headers)))[0] == expected, headers


async def test_response_is_cut_if_its_file_becomes_shorter(directory: Path) -> None:
    big = directory / "big.bin"
    with big.open("wb") as file:
        file.truncate(200_000_000)
    async with run_gateway(config(directory)) as gateway:
        client = await gateway.connect()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # most of the file is then still unread
        await client.send(get_request("big.bin"))
        await wait_until(lambda: gateway.stats.routes["f"].transfers[Direction.DOWNLOAD].bytes_moved)
        os.truncate(big, 1000)
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]  # see above
        response = await client.read_to_end()
        await client.close()
        assert len(response) < 200_000_000
        line = await gateway.wait_log_line()
        assert (line["code"], line["outcome"]) == ("disk_failed", "disk_failed")


async def test_other_methods_are_405_with_allow(directory: Path) -> None:
    async with run_gateway(config(directory)) as gateway:
        status, headers, _ = split_response(await gateway.request(get_request(method="DELETE")))
        assert (status, headers["allow"]) == (405, "GET, HEAD")


async def test_removed_directory_is_503(tmp_path: Path) -> None:
    root = tmp_path / "gone"
    root.mkdir()
    async with run_gateway(config(root)) as gateway:
        root.rmdir()
        assert problem_of(await gateway.request(get_request()))["code"] == "disk_unavailable"


@pytest.mark.parametrize("headers", ["", "Range: bytes=1-900000\r\n", "Range: bytes=5000-\r\n"])
async def test_file_that_is_not_in_the_page_cache_is_sent_whole(directory: Path, headers: str) -> None:
    async with run_gateway({"lanes": "auto", **config(directory)}) as gateway:
        expected = split_response(await gateway.request(get_request(headers=headers)))[2]
        evict(directory / "a.bin")
        assert split_response(await gateway.request(get_request(headers=headers)))[2] == expected
        assert len(expected) >= 900_000


@pytest.mark.parametrize("earlier_count", [0, 1])
async def test_only_bytes_that_are_in_the_page_cache_are_sent_by_the_event_loop(
    directory: Path, monkeypatch: pytest.MonkeyPatch, earlier_count: int
) -> None:
    """Only the first and the last byte were looked at: two ranges of one byte made the loop wait for the disk."""
    sent: list[tuple[str, int, int, int]] = []
    real = os.sendfile

    def record(out: int, file: int, at: int, size: int) -> int:
        pages = PageCache(file, os.geteuid(), os.fstat(file).st_size)
        cached = pages.count_cached(at, size)
        pages.close()
        sent.append((threading.current_thread().name, at, size, cached))
        return real(out, file, at, size)

    path = directory / "big.bin"
    path.write_bytes(DATA * 8)
    async with run_gateway({"lanes": "auto", **config(directory)}) as gateway:
        for _ in range(earlier_count):
            assert split_response(await gateway.request(get_request("big.bin")))[2] == DATA * 8
        evict(path)
        for headers in ("Range: bytes=0-0\r\n", f"Range: bytes={len(DATA) * 8 - 1}-\r\n"):
            await gateway.request(get_request("big.bin", headers=headers))
        monkeypatch.setattr(os, "sendfile", record)
        assert split_response(await gateway.request(get_request("big.bin")))[2] == DATA * 8
        assert (await gateway.wait_log_line(3 + earlier_count))["download_lane"] == "splice"
    assert sent
    assert all(name == "MainThread" and cached == size for name, _, size, cached in sent), sent


async def test_client_that_disconnects_during_a_file_ends_the_transfer_while_the_disk_is_silent(
    slow_disk: SlowDisk,
) -> None:
    """A thread sent the file, and the exchange waited for it."""
    path = slow_disk.directory / "big.bin"
    await asyncio.to_thread(path.write_bytes, DATA)
    await asyncio.to_thread(evict, path)
    async with run_gateway({"lanes": "auto", **config(slow_disk.directory)}) as gateway:
        await slow_disk.hold("READ")
        client = await gateway.connect()
        await client.send(get_request("big.bin"))
        await slow_disk.wait_held()
        await client.close()
        assert (await gateway.wait_log_line())["outcome"] == "client_left"
        await slow_disk.release()

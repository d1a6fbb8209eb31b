"""store: only the bytes of files are stored, complete or not at all, under names that stay in the directory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gateway.storage import DiskThreads, sweep
from gateway.storage.directory import DirectoryUpload
from gateway.storage.file import FileWriter
from gateway.storage.hashing import FileHash
from tests.peers import chunked, form, post, problem_of, run_gateway, split_response, wait_until


def config(directory: Path, **store: str) -> dict[str, Any]:
    return {
        "routes": [{"name": "s", "match": {"prefix": "/up"}, "store": {"directory": str(directory), **store}}],
    }


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def file(name: str, data: bytes) -> tuple[str, bytes]:
    return f'name="file"; filename="{name}"', data


def put(data: bytes, target: str = "/up/a.bin", headers: str = "") -> bytes:
    head = f"PUT {target} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n{headers}Content-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def test_every_file_part_is_stored_and_described(tmp_path: Path) -> None:
    big = os.urandom(1_000_003)
    async with run_gateway(config(tmp_path)) as gateway:
        body = form(("name=note", b"hello"), file("a.txt", b"A"), file("b.bin", big), file("empty", b""))
        status, headers, response = split_response(await gateway.request(post(body, target="/up")))
        assert status == 201
        assert headers["content-type"] == "application/json"
        files = json.loads(response)["files"]
        assert [(entry["name"], entry["size"], entry["field"]) for entry in files] == [
            ("a.txt", 1, "file"),
            ("b.bin", len(big), "file"),
            ("empty", 0, "file"),
        ]
        assert files[1]["sha256"] == hashlib.sha256(big).hexdigest()
        assert files[1]["type"] == "application/octet-stream"
        assert (tmp_path / "b.bin").read_bytes() == big
        assert names(tmp_path) == ["a.txt", "b.bin", "empty"]
        assert (await gateway.wait_log_line())["upload"] == "complete"


@pytest.mark.parametrize("data", [b"", b"hello", b"x" * 700_000])
async def test_raw_put_is_stored_under_the_last_path_segment(tmp_path: Path, data: bytes) -> None:
    async with run_gateway(config(tmp_path)) as gateway:
        status, _, response = split_response(await gateway.request(put(data, "/up/dir/my%20file.bin?x=1")))
        assert status == 201
        assert json.loads(response)["files"][0]["sha256"] == hashlib.sha256(data).hexdigest()
        assert (tmp_path / "my file.bin").read_bytes() == data


async def test_chunked_raw_upload_is_stored(tmp_path: Path) -> None:
    head = b"POST /up/c HTTP/1.1\r\nHost: gw\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with run_gateway(config(tmp_path)) as gateway:
        assert split_response(await gateway.request(head + chunked(b"abc", b"defg")))[0] == 201
        assert (tmp_path / "c").read_bytes() == b"abcdefg"


async def test_content_disposition_names_a_raw_upload(tmp_path: Path) -> None:
    async with run_gateway(config(tmp_path)) as gateway:
        headers = 'Content-Disposition: attachment; filename="named.txt"\r\n'
        assert split_response(await gateway.request(put(b"x", "/up", headers)))[0] == 201
        assert names(tmp_path) == ["named.txt"]


NAMES = {
    "../../etc/passwd": "passwd",
    "/etc/passwd": "passwd",
    "..\\\\..\\\\boot.ini": "boot.ini",
    "..": "upload",
    ".": "upload",
    "": "upload",
    ".bashrc": "bashrc",
    "a\tb.txt": "a_b.txt",
    "con.txt": "_con.txt",
    "LPT1": "_LPT1",
    "x" * 300 + ".tar": "x" * 246 + ".tar",
    "\u202egpj.exe": "_gpj.exe",
    "trailing. . ": "trailing",
    "a:b|c?.txt": "a_b_c_.txt",
    "日本語.txt": "日本語.txt",
}


@pytest.mark.parametrize("wire_name", NAMES)
async def test_file_names_from_clients_never_become_paths(tmp_path: Path, wire_name: str) -> None:
    directory = tmp_path / "in"
    directory.mkdir()
    async with run_gateway(config(directory)) as gateway:
        response = await gateway.request(post(form(file(wire_name, b"x")), target="/up"))
        assert split_response(response)[0] == 201, response
        assert names(directory) == [NAMES[wire_name]]
        assert names(tmp_path) == ["in"]


async def test_uuid_names_keep_only_a_plain_extension(tmp_path: Path) -> None:
    async with run_gateway(config(tmp_path, name="uuid")) as gateway:
        await gateway.request(post(form(file("../x.tar.gz", b"1"), file("y.b&d", b"2")), target="/up"))
        suffixes = sorted(Path(name).suffix for name in names(tmp_path))
        assert suffixes == ["", ".gz"]
        assert all(len(Path(name).stem) == 32 for name in names(tmp_path))


async def test_existing_name_is_numbered_also_within_one_upload(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    async with run_gateway(config(tmp_path)) as gateway:
        response = await gateway.request(post(form(file("a.txt", b"1"), file("a.txt", b"2")), target="/up"))
        files = json.loads(split_response(response)[2])["files"]
        assert [entry["name"] for entry in files] == ["a-1.txt", "a-2.txt"]
        assert [(tmp_path / name).read_text() for name in ("a.txt", "a-1.txt", "a-2.txt")] == ["old", "1", "2"]


async def test_existing_name_is_rejected_if_configured_and_no_file_of_the_upload_is_stored(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    async with run_gateway(config(tmp_path, if_exists="reject")) as gateway:
        response = await gateway.request(post(form(file("b.txt", b"1"), file("a.txt", b"2")), target="/up"))
        assert problem_of(response)["code"] == "file_exists"
        assert names(tmp_path) == ["a.txt"]
        response = await gateway.request(post(form(file("c.txt", b"1"), file("c.txt", b"2")), target="/up"))
        assert problem_of(response)["status"] == 409
        assert names(tmp_path) == ["a.txt"]


async def test_existing_file_is_replaced_if_configured(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    async with run_gateway(config(tmp_path, if_exists="replace")) as gateway:
        await gateway.request(post(form(file("a.txt", b"new")), target="/up"))
        assert (tmp_path / "a.txt").read_text() == "new"
        assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_client_that_disconnects_leaves_no_incomplete_file(tmp_path: Path, how: str) -> None:
    body = form(file("first", b"whole"), file("second", b"y" * 5_000_000))
    async with run_gateway(config(tmp_path)) as gateway:
        client = await gateway.connect()
        await client.send(post(body, target="/up")[:3_000_000])
        await wait_until(lambda: names(tmp_path))
        if how == "fin":
            await client.close()
        else:
            client.reset()
        line = await gateway.wait_log_line()
        assert (line["outcome"], line["upload"]) == ("client_left", "client_left")
        # The removal continues after the exchange is cancelled; nothing waits for it.
        await wait_until(lambda: not names(tmp_path))


@pytest.mark.parametrize(
    ("damage", "limits", "code"),
    [
        (lambda body: body[:-8], {}, "bad_multipart"),
        (lambda body: body.replace(b"XBOUNDARYX", b"YYYYYYYYYY"), {}, "bad_multipart"),
        (lambda body: body, {"max_part": 1000}, "part_too_large"),
        (lambda body: body, {"max_parts": 1}, "too_many_parts"),
    ],
)
async def test_malformed_form_leaves_no_file(tmp_path: Path, damage: Any, limits: dict[str, int], code: str) -> None:
    settings = config(tmp_path)
    settings["routes"][0]["limits"] = limits
    body = damage(form(file("a", b"a" * 900), file("b", b"b" * 400_000)))
    async with run_gateway(settings) as gateway:
        assert problem_of(await gateway.request(post(body, target="/up")))["code"] == code
        assert names(tmp_path) == []


async def test_form_without_a_file_is_400(tmp_path: Path) -> None:
    async with run_gateway(config(tmp_path)) as gateway:
        response = await gateway.request(post(form(("name=a", b"b")), target="/up"))
        assert problem_of(response)["code"] == "bad_multipart"


async def test_upload_without_a_body_is_411(tmp_path: Path) -> None:
    async with run_gateway(config(tmp_path)) as gateway:
        response = await gateway.request(b"POST /up HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
        assert problem_of(response)["status"] == 411


async def test_removed_directory_is_503_without_a_path_in_the_response(tmp_path: Path) -> None:
    directory = tmp_path / "in"
    directory.mkdir()
    async with run_gateway(config(directory)) as gateway:
        directory.rmdir()
        document = problem_of(await gateway.request(put(b"x")))
        assert (document["status"], document["code"]) == (503, "disk_unavailable")
        assert str(tmp_path) not in document["detail"]
        line = await gateway.wait_log_line()
        assert (line["outcome"], line["blame"]) == ("disk_failed", "gateway")


async def test_upload_larger_than_the_disk_is_507_before_100_is_sent(tmp_path: Path) -> None:
    head = b"PUT /up/a HTTP/1.1\r\nHost: gw\r\nExpect: 100-continue\r\nContent-Length: 9000000000000000\r\n\r\n"
    settings = config(tmp_path)
    settings["routes"][0]["limits"] = {"max_body": "unlimited"}
    async with run_gateway(settings) as gateway:
        assert problem_of(await gateway.request(head))["status"] == 507


async def test_full_disk_is_507_and_leaves_no_file(tmp_path: Path) -> None:
    """The disk is a real file system of 1 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounting = await asyncio.create_subprocess_exec(
        "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory), stderr=asyncio.subprocess.DEVNULL
    )
    if await mounting.wait():
        pytest.skip("cannot mount a small file system: needs root")
    try:
        async with run_gateway(config(directory)) as gateway:
            head = b"PUT /up/a HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            response = await gateway.request(head, chunked(*[b"z" * 100_000] * 30))
            assert problem_of(response)["code"] == "disk_full"
            assert names(directory) == []
            line = await gateway.wait_log_line()
            assert (line["upload"], line["blame"]) == ("disk_failed", "gateway")
            assert split_response(await gateway.request(put(b"fits")))[0] == 201
    finally:
        await (await asyncio.create_subprocess_exec("umount", str(directory))).wait()


async def test_incomplete_files_are_hidden_and_in_the_directory_of_the_final_name(tmp_path: Path) -> None:
    async with run_gateway(config(tmp_path)) as gateway:
        client = await gateway.connect()
        await client.send(put(b"x" * 1_000_000)[:600_000])
        await wait_until(lambda: names(tmp_path))
        assert all(name.startswith(".") and name.endswith(".part") for name in names(tmp_path))
        await client.close()
        await gateway.wait_log_line()


async def test_staging_directory_swept_before_it_is_locked_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    swept_descriptors: list[int] = []

    def flock(descriptor: int, how: int) -> None:
        if not swept_descriptors:
            # Another gateway starts now and sweeps. Its sweep takes the lock before this gateway does.
            swept_descriptors.append(descriptor)
            assert sweep(tmp_path) == 1
        lock(descriptor, how)

    monkeypatch.setattr("gateway.storage.staging.fcntl.flock", flock)
    async with run_gateway(config(tmp_path)) as gateway:
        assert split_response(await gateway.request(put(b"data")))[0] == 201
        assert names(tmp_path) == ["a.bin"]
        assert swept_descriptors


async def test_staging_directory_locked_by_a_sweep_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    locked_names: list[str] = []

    def flock(descriptor: int, how: int) -> None:
        if not locked_names:
            # The sweep of another gateway holds the lock and removes the directory later.
            locked_names.extend(names(tmp_path))
            raise BlockingIOError(errno.EWOULDBLOCK, "held")
        lock(descriptor, how)

    monkeypatch.setattr("gateway.storage.staging.fcntl.flock", flock)
    async with run_gateway(config(tmp_path)) as gateway:
        client = await gateway.connect()
        await client.send(put(b"x" * 600_000)[:-1])
        await wait_until(lambda: list(tmp_path.glob(".*.part/0")))
        assert not list((tmp_path / locked_names[0]).iterdir())
        (tmp_path / locked_names[0]).rmdir()
        await client.send(b"x")
        assert split_response(await client.read_to_end())[0] == 201
        await client.close()
        assert names(tmp_path) == ["a.bin"]


async def test_file_that_cannot_be_removed_keeps_no_other_file_and_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def fail_first(self: Path, missing_ok: bool = False) -> None:
        if self.name == "0":
            raise OSError(errno.EIO, "the disk died")
        unlink(self, missing_ok)

    async with run_gateway(config(tmp_path)) as gateway:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", fail_first)
            body = form(file("a", b"1"), file("b", b"2"))[:-8]
            assert problem_of(await gateway.request(post(body, target="/up")))["code"] == "bad_multipart"
        assert [path.name for path in (tmp_path / names(tmp_path)[0]).iterdir()] == ["0"]
        assert sweep(tmp_path) == 1


@pytest.mark.parametrize("error", [errno.EBADF, errno.ENOLCK])
async def test_directory_without_locks_stores_files_and_is_never_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(error, "no locks here")

    monkeypatch.setattr("gateway.storage.staging.fcntl.flock", flock)
    async with run_gateway(config(tmp_path)) as gateway:
        assert split_response(await gateway.request(put(b"data")))[0] == 201
    assert names(tmp_path) == ["a.bin"]
    (tmp_path / f".{'0' * 32}.part").mkdir()
    assert sweep(tmp_path) == 0


@pytest.fixture
def failing_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the rename of a file named b fail."""
    name_one = DirectoryUpload._name

    def fail_second(self: DirectoryUpload, file: FileWriter, undo: contextlib.ExitStack) -> None:
        if file.name == "b":
            raise OSError(errno.EIO, "the disk died")
        name_one(self, file, undo)

    monkeypatch.setattr(DirectoryUpload, "_name", fail_second)


@pytest.mark.usefixtures("failing_commit")
@pytest.mark.parametrize("if_exists", ["rename", "reject", "replace"])
async def test_commit_that_fails_on_the_second_file_removes_the_first(tmp_path: Path, if_exists: str) -> None:
    async with run_gateway(config(tmp_path, if_exists=if_exists)) as gateway:
        response = await gateway.request(post(form(file("a", b"1"), file("b", b"2")), target="/up"))
        assert problem_of(response)["status"] == 503
        assert names(tmp_path) == []
        assert (await gateway.wait_log_line())["upload"] == "disk_failed"


@pytest.mark.usefixtures("failing_commit")
async def test_commit_that_fails_on_the_second_file_puts_back_the_first_that_it_had_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "link").symlink_to("a")
    body = form(file("a", b"1"), file("link", b"1"), file("b", b"2"))
    async with run_gateway(config(tmp_path, if_exists="replace")) as gateway:
        assert problem_of(await gateway.request(post(body, target="/up")))["status"] == 503
        assert names(tmp_path) == ["a", "link"]
        assert (tmp_path / "a").read_bytes() == b"old"
        assert (tmp_path / "link").is_symlink()


async def test_directory_with_the_name_of_a_file_is_409_and_no_file_is_replaced(tmp_path: Path) -> None:
    """The first file was replaced, and the response was 500."""
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b").mkdir()
    async with run_gateway(config(tmp_path, if_exists="replace")) as gateway:
        problem = problem_of(await gateway.request(post(form(file("a", b"1"), file("b", b"2")), target="/up")))
        assert (problem["status"], problem["code"]) == (409, "file_exists")
        assert "directory" in problem["detail"]
        assert ((tmp_path / "a").read_bytes(), names(tmp_path)) == (b"old", ["a", "b"])


async def test_directory_made_while_the_form_is_sent_is_409_and_no_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    request = post(form(file("a", b"1" * 600_000), file("b", b"2" * 600_000)), target="/up")
    async with run_gateway(config(tmp_path, if_exists="replace")) as gateway:
        client = await gateway.connect()
        await client.send(request[:-1])
        await wait_until(lambda: list(tmp_path.glob(".*.part/1")))
        (tmp_path / "b").mkdir()
        await client.send(request[-1:])
        assert problem_of(await client.read_to_end())["status"] == 409
        await client.close()
        assert ((tmp_path / "a").read_bytes(), names(tmp_path)) == (b"old", ["a", "b"])


async def test_two_files_of_one_name_are_409_with_replace(tmp_path: Path) -> None:
    """Both were reported as stored, and one was there. Names that become the same one count, too."""
    async with run_gateway(config(tmp_path, if_exists="replace")) as gateway:
        body = form(file("a.txt", b"1"), file("../a.txt", b"2"))
        assert problem_of(await gateway.request(post(body, target="/up")))["code"] == "file_exists"
        assert names(tmp_path) == []


async def test_name_that_the_file_system_cannot_store_is_400(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """eCryptfs allows 143 bytes; vfat refuses some characters. It was 500, after the whole body was received."""
    monkeypatch.setattr("gateway.storage.names._MAX_BYTES", 300)
    async with run_gateway(config(tmp_path)) as gateway:
        problem = problem_of(await gateway.request(put(b"x", "/up/" + "n" * 280)))
        assert (problem["status"], problem["code"]) == (400, "bad_file_name")
        assert names(tmp_path) == []


async def test_file_system_without_hard_links_stores_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    async with run_gateway(config(tmp_path)) as gateway:
        for expected in ("a.bin", "a-1.bin"):
            response = await gateway.request(put(expected.encode()))
            assert json.loads(split_response(response)[2])["files"][0]["name"] == expected
            assert (tmp_path / expected).read_bytes() == expected.encode()


@pytest.mark.parametrize(
    ("filters", "keys"),
    [
        ([], {"sha256"}),
        (["digest"], {"sha256"}),
        ([{"digest": {"algorithm": "blake2b"}}], {"blake2b"}),
        ([{"digest": {"algorithm": "blake2b"}}, {"sniff": {"allow": ["*"]}}], {"blake2b", "sniffed"}),
        ([{"digest": {"algorithm": "blake2b"}}, "compress"], {"blake2b", "sha256"}),
        (["compress", {"digest": {"algorithm": "blake2b"}}], {"blake2b"}),
    ],
)
async def test_digest_filter_replaces_the_hash_of_the_storage_where_it_sees_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filters: list[Any], keys: set[str]
) -> None:
    """Files of a route with the filter were hashed twice, a third of the CPU time."""
    made: list[FileHash] = []
    real = FileHash.__init__

    def record(self: FileHash, threads: DiskThreads) -> None:
        made.append(self)
        real(self, threads)

    monkeypatch.setattr(FileHash, "__init__", record)
    data = os.urandom(700_000)
    async with run_gateway({"routes": [{**config(tmp_path)["routes"][0], "filters": filters}]}) as gateway:
        response = split_response(await gateway.request(post(form(file("a.bin", data)), target="/up")))[2]
    (described,) = json.loads(response)["files"]
    assert described.keys() - {"name", "size", "field", "filename", "type"} == keys
    stored = (tmp_path / described["name"]).read_bytes()
    for algorithm in keys & {"sha256", "blake2b"}:
        seen = data if algorithm == "blake2b" and filters[-1] == "compress" else stored
        assert described[algorithm] == hashlib.new(algorithm, seen).hexdigest()
    assert len(made) == (not filters or keys > {"sha256"})

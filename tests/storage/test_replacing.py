"""The removal of files that an upload to a directory has replaced."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.storage import DiskThreads, NameRules
from gateway.storage import directory as directory_module
from gateway.storage.directory import DirectoryStorage, DirectoryUpload
from gateway.storage.staging import sweep
from tests.peers import TIMEOUT_SECONDS, wait_until

LARGE_BYTES = directory_module._REMOVED_BYTES + 1


@pytest.fixture
def may_remove(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Give an event that the removal of a replaced file waits for."""
    may_remove = threading.Event()
    unlink = Path.unlink

    def wait_and_unlink(self: Path, *, missing_ok: bool = False) -> None:
        if self.suffix == ".before":
            may_remove.wait(TIMEOUT_SECONDS)
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", wait_and_unlink)
    yield may_remove
    may_remove.set()


async def replace(disk_threads: DiskThreads, directory: Path) -> None:
    storage = DirectoryStorage(directory, disk_threads, disk_threads)
    async with storage.open_upload(NameRules(if_exists="replace")) as upload:
        file = await upload.begin("a")
        await file.write(b"new")
        await file.finish()
        await upload.commit()


async def test_large_file_that_was_replaced_is_removed_after_the_commit(
    disk_threads: DiskThreads, tmp_path: Path, may_remove: threading.Event
) -> None:
    """The response waited for it: 0.2 s per GB."""
    (tmp_path / "a").write_bytes(bytes(LARGE_BYTES))
    await replace(disk_threads, tmp_path)
    assert (tmp_path / "a").read_bytes() == b"new"
    (staging,) = set(os.listdir(tmp_path)) - {"a"}
    assert os.listdir(tmp_path / staging) == ["0.before"]
    # It is locked until the file is removed: another gateway leaves it alone.
    assert sweep(tmp_path) == 0
    may_remove.set()
    await wait_until(lambda: os.listdir(tmp_path) == ["a"])


async def test_small_file_that_was_replaced_is_gone_with_the_commit(disk_threads: DiskThreads, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    await replace(disk_threads, tmp_path)
    assert os.listdir(tmp_path) == ["a"]


async def test_large_file_is_removed_where_the_upload_is_cancelled_while_its_commit_replaces_it(
    disk_threads: DiskThreads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kept its space until the next start."""
    (tmp_path / "a").write_bytes(bytes(LARGE_BYTES))
    is_committing, may_commit = threading.Event(), threading.Event()
    sync_directory = DirectoryUpload._sync_directory

    def wait_and_sync(self: DirectoryUpload) -> None:
        is_committing.set()
        may_commit.wait(TIMEOUT_SECONDS)
        sync_directory(self)

    monkeypatch.setattr(DirectoryUpload, "_sync_directory", wait_and_sync)
    task = asyncio.create_task(replace(disk_threads, tmp_path))
    await wait_until(is_committing.is_set)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    may_commit.set()
    await wait_until(lambda: os.listdir(tmp_path) == ["a"])
    assert (tmp_path / "a").read_bytes() == b"new"

"""The threads that write a file: how they get its batches, and what happens to these where one fails or is stuck."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from gateway.errors import Fault, FaultKind
from gateway.storage import DiskThreads, NameRules
from gateway.storage.batches import BatchSizes
from gateway.storage.directory import DirectoryStorage
from tests.peers import TIMEOUT_SECONDS, wait_until

BATCH_BYTES = BatchSizes().least_bytes


class Disk:
    """Takes the place of os.write: it keeps what is written, and waits or fails."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.may_go_on = threading.Event()
        self.has_written_two = threading.Event()
        self.fails = False
        self._write = os.write

    def write(self, descriptor: int, data: memoryview) -> int:
        if threading.current_thread().name != "disk":
            return self._write(descriptor, data)
        self.written.append(bytes(data[:1]))
        self.may_go_on.wait(TIMEOUT_SECONDS)
        if self.fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if len(self.written) == 2:
            self.has_written_two.set()
        return self._write(descriptor, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Give a test a disk that is stuck until `may_go_on`."""
    disk = Disk()
    monkeypatch.setattr(os, "write", disk.write)
    return disk


async def test_thread_takes_the_next_batch_while_the_event_loop_is_busy(
    disk_threads: DiskThreads, tmp_path: Path, disk: Disk
) -> None:
    """It waited for the event loop to give it one."""
    async with DirectoryStorage(tmp_path, disk_threads, disk_threads).open_upload(NameRules()) as upload:
        file = await upload.begin("a", is_hashed=False)
        for byte in (b"1", b"2"):
            await file.write(byte * BATCH_BYTES)
        disk.may_go_on.set()
        assert disk.has_written_two.wait(TIMEOUT_SECONDS)
        await file.finish()
        await upload.commit()
    assert (tmp_path / "a").read_bytes() == b"1" * BATCH_BYTES + b"2" * BATCH_BYTES


async def test_nothing_is_written_after_a_batch_that_failed(
    disk_threads: DiskThreads, tmp_path: Path, disk: Disk
) -> None:
    disk.fails = True

    async def store() -> None:
        async with DirectoryStorage(tmp_path, disk_threads, disk_threads).open_upload(NameRules()) as upload:
            file = await upload.begin("a")
            for byte in (b"1", b"2"):
                await file.write(byte * BATCH_BYTES)
            disk.may_go_on.set()
            await file.finish()

    with pytest.raises(Fault) as raised:
        await store()
    assert raised.value.kind is FaultKind.DISK_FULL
    assert disk.written == [b"1"]
    assert not os.listdir(tmp_path)


async def test_cancelled_upload_drops_the_batch_that_waits_and_is_removed(
    disk_threads: DiskThreads, tmp_path: Path, disk: Disk
) -> None:
    async def store() -> None:
        async with DirectoryStorage(tmp_path, disk_threads, disk_threads).open_upload(NameRules()) as upload:
            file = await upload.begin("a")
            for byte in (b"1", b"2", b"3"):
                await file.write(byte * BATCH_BYTES)

    storing = asyncio.create_task(store(), name="store")
    await wait_until(lambda: bool(disk.written))
    storing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storing
    disk.may_go_on.set()
    await wait_until(lambda: not os.listdir(tmp_path))
    assert disk.written == [b"1"]

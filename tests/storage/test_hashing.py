"""Hashing beside storing: the same chunks in two threads at once, and no more of them than in one."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from pathlib import Path

import pytest

from gateway.storage import DiskThreads, NameRules
from gateway.storage.batches import HELD_BATCHES, Batches, BatchSizes
from gateway.storage.directory import DirectoryStorage
from gateway.storage.hashing import FileHash
from tests.peers import TIMEOUT_SECONDS, wait_until

CHUNK_BYTES = 64 * 1024
#: Of the only upload to a storage.
BATCH_BYTES = BatchSizes().least_bytes


async def test_batch_is_hashed_while_it_is_written(
    disk_threads: DiskThreads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread did both, one after the other. Here each waits for the other, within the first batch."""
    both = threading.Barrier(2)
    write, update = os.write, FileHash._update

    def write_together(descriptor: int, data: memoryview) -> int:
        if threading.current_thread().name == "disk":
            both.wait(TIMEOUT_SECONDS)
        return write(descriptor, data)

    def update_together(self: FileHash, batch: list[bytes]) -> None:
        both.wait(TIMEOUT_SECONDS)
        update(self, batch)

    storage = DirectoryStorage(tmp_path, disk_threads, disk_threads)
    data = os.urandom(BATCH_BYTES)
    async with storage.open_upload(NameRules()) as upload:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write_together)
            patch.setattr(FileHash, "_update", update_together)
            file = await upload.begin("a")
            await file.write(data)
            await file.finish()
        (stored,) = await upload.commit()
    assert stored.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("slow", ["disk", "hash"])
async def test_no_more_than_three_batches_are_held_whichever_of_both_is_slow(
    disk_threads: DiskThreads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    may_go_on = threading.Event()
    write, update = os.write, FileHash._update

    def write_late(descriptor: int, data: memoryview) -> int:
        if slow == "disk" and threading.current_thread().name == "disk":
            may_go_on.wait(TIMEOUT_SECONDS)
        return write(descriptor, data)

    def update_late(self: FileHash, batch: list[bytes]) -> None:
        if slow == "hash":
            may_go_on.wait(TIMEOUT_SECONDS)
        update(self, batch)

    monkeypatch.setattr(os, "write", write_late)
    monkeypatch.setattr(FileHash, "_update", update_late)
    held = written = 0

    class Chunk(bytes):
        def __del__(self) -> None:
            nonlocal held
            held -= 1

    storage = DirectoryStorage(tmp_path, disk_threads, disk_threads)
    async with storage.open_upload(NameRules()) as upload:
        file = await upload.begin("a")

        async def write_all() -> None:
            nonlocal held, written
            for number in range(6 * BATCH_BYTES // CHUNK_BYTES):
                chunk = Chunk(bytes([number]) * CHUNK_BYTES)
                held += 1
                await file.write(chunk)
                written += CHUNK_BYTES

        writing = asyncio.create_task(write_all(), name="write")
        await wait_until(lambda: written >= HELD_BATCHES * BATCH_BYTES - CHUNK_BYTES)
        await asyncio.sleep(0)  # it would go on now, if it held more
        assert not writing.done()
        assert held * CHUNK_BYTES <= HELD_BATCHES * BATCH_BYTES
        may_go_on.set()
        await writing
        await file.finish()
        await upload.commit()


async def test_small_file_is_hashed_without_a_thread(
    disk_threads: DiskThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(disk_threads, "start", started.append)
    hashed = FileHash(disk_threads)
    batches = Batches([hashed.work], BatchSizes())
    await batches.add(b"small")
    await batches.finish()
    assert hashed.hexdigest() == hashlib.sha256(b"small").hexdigest()
    assert not started


def test_batches_are_smaller_if_more_uploads_are_open() -> None:
    sizes, seen = BatchSizes(), []
    for count in (1, 2, 8, 64, 1000):
        sizes.open_count = count
        seen.append(sizes.least_bytes)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == seen[-2] < seen[1] < seen[0]

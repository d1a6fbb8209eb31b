"""Calls in threads whose wait is cancelled: nothing they open is left, nothing they raise is logged."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from gateway.storage import DiskThreads
from gateway.storage.cached_pieces import CachedPieces
from gateway.storage.directory import DirectoryStorage
from gateway.storage.file import open_for_reading
from tests.peers import wait_until


async def test_exception_of_a_call_whose_wait_was_cancelled_is_retrieved(disk_threads: DiskThreads) -> None:
    """asyncio once logged it as never retrieved; the checks for log records hold that."""
    may_fail = threading.Event()

    def fail() -> None:
        may_fail.wait(5)
        raise BrokenPipeError

    started = disk_threads.start(fail)
    waiting = asyncio.create_task(disk_threads.wait(started), name="wait")
    await asyncio.sleep(0)  # the task starts to wait
    waiting.cancel()
    may_fail.set()
    await asyncio.gather(waiting, return_exceptions=True)
    await wait_until(started.done)


async def test_file_opened_after_the_client_left_is_closed(
    disk_threads: DiskThreads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks for descriptors hold that."""
    (tmp_path / "a").write_bytes(b"x")
    may_open = threading.Event()

    def open_late(where: Path, path: str, pieces: CachedPieces) -> object:
        may_open.wait(5)
        return open_for_reading(where, path, pieces)

    monkeypatch.setattr("gateway.storage.directory.open_for_reading", open_late)
    opening = asyncio.create_task(DirectoryStorage(tmp_path, disk_threads, disk_threads).open_file("a"), name="open")
    await asyncio.sleep(0)  # the task starts to wait
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    may_open.set()

"""What is in memory of a file, on a real file system, from which pages are dropped."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.storage import page_cache
from gateway.storage.cached_pieces import PIECE_BYTES, CachedPieces
from gateway.storage.page_cache import PageCache
from tests.slow_disk import SlowDisk, evict

PAGE = os.sysconf("SC_PAGESIZE")
SIZE = 64 * PAGE + 5


def write_page_by_page(path: Path, size: int) -> None:
    """Write a file: the kernel keeps larger writes as large folios, and drops those as a whole."""
    with path.open("wb", buffering=0) as file:
        data = os.urandom(PAGE)
        for at in range(0, size, PAGE):
            file.write(data[: size - at])


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    """Give a test a file that is in memory."""
    path = tmp_path / "file"
    write_page_by_page(path, SIZE)
    opened = os.open(path, os.O_RDONLY)
    os.fsync(opened)
    # No readahead: a read brings in its own pages only.
    os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_RANDOM)
    yield opened
    os.close(opened)


def drop(descriptor: int, at: int, size: int) -> None:
    """Drop whole pages from memory."""
    os.posix_fadvise(descriptor, at, size, os.POSIX_FADV_DONTNEED)
    look = PageCache(descriptor, os.geteuid(), SIZE)
    is_kept = look.count_cached(at, size)
    look.close()
    if is_kept:
        pytest.skip("this file system keeps its pages in memory")


@pytest.fixture(params=["mincore", "remembered", "nowait"])
def cache(descriptor: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[PageCache]:
    """Ask in all ways; the last is for files that this process neither owns nor may write."""
    if request.param == "nowait":
        monkeypatch.setattr("gateway.storage.page_cache._LIBC", None)
        made = PageCache(descriptor, os.geteuid(), SIZE)
        monkeypatch.undo()
    else:
        pieces = CachedPieces().of(os.fstat(descriptor)) if request.param == "remembered" else None
        made = PageCache(descriptor, os.geteuid(), SIZE, pieces)
    if request.param == "remembered":
        assert made.count_cached(0, SIZE) == SIZE
    yield made
    made.close()


def test_file_in_memory_is_counted_whole(cache: PageCache) -> None:
    assert cache.can_tell
    assert cache.count_cached(0, SIZE) == SIZE
    assert cache.count_cached(PAGE + 7, 3 * PAGE) == 3 * PAGE
    assert cache.count_cached(SIZE - 1, 1) == 1


def test_count_ends_at_the_first_page_that_is_not_in_memory(cache: PageCache, descriptor: int) -> None:
    """The first and the last byte of a range are not enough."""
    drop(descriptor, 16 * PAGE, 16 * PAGE)
    assert cache.count_cached(0, SIZE) == 16 * PAGE
    assert cache.count_cached(PAGE + 7, SIZE - PAGE - 7) == 15 * PAGE - 7
    assert cache.count_cached(16 * PAGE + 100, PAGE) == 0
    assert cache.count_cached(32 * PAGE, SIZE - 32 * PAGE) == SIZE - 32 * PAGE


def test_bytes_after_the_end_are_not_in_memory(cache: PageCache) -> None:
    assert cache.count_cached(SIZE + PAGE, PAGE) == 0


def test_page_that_is_dropped_later_is_missing_in_the_next_answer(cache: PageCache, descriptor: int) -> None:
    assert cache.count_cached(0, SIZE) == SIZE
    drop(descriptor, 0, 4 * PAGE)
    assert cache.count_cached(0, SIZE) == 0
    assert cache.count_cached(4 * PAGE, PAGE) == PAGE


def test_file_that_becomes_shorter_is_in_memory_up_to_its_new_end(cache: PageCache, descriptor: int) -> None:
    """The mapping is of the whole file: a page after the end must not be touched."""
    os.truncate(f"/proc/self/fd/{descriptor}", 3 * PAGE)
    assert cache.count_cached(0, SIZE) == 3 * PAGE
    assert cache.count_cached(3 * PAGE, PAGE) == 0


def test_closed_mapping_is_gone(descriptor: int) -> None:
    before = Path("/proc/self/maps").read_text().count("/file")
    cache = PageCache(descriptor, os.geteuid(), SIZE)
    assert Path("/proc/self/maps").read_text().count("/file") == before + 1
    cache.close()
    cache.close()
    assert Path("/proc/self/maps").read_text().count("/file") == before


class Looks:
    """A file of two pieces and a bit. Counts the pages that mincore looks at, and the other looks."""

    size = 2 * PIECE_BYTES + 2 * PAGE + 1

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_page_by_page(path, self.size)
        self.file = os.open(path, os.O_RDONLY)
        os.fsync(self.file)
        os.posix_fadvise(self.file, 0, 0, os.POSIX_FADV_RANDOM)
        self.pieces = CachedPieces()
        self._pages = self._others = 0
        ask, count = PageCache._ask_mincore, page_cache._count_pages
        if count(self.file, 0, 1) < 0:
            pytest.skip("this kernel has no cachestat(2)")

        def ask_mincore(cache: PageCache, at: int, end: int) -> bytes:
            pages = ask(cache, at, end)
            self._pages += len(pages)
            return pages

        def count_pages(descriptor: int, at: int, size: int) -> int:
            self._others += 1
            return count(descriptor, at, size)

        monkeypatch.setattr(PageCache, "_ask_mincore", ask_mincore)
        monkeypatch.setattr(page_cache, "_count_pages", count_pages)

    def look(self, at: int = 0, size: int = 2**40) -> int:
        """Open the file and look once; return how many bytes are in memory."""
        cache = PageCache(self.file, os.geteuid(), self.size, self.pieces.of(os.fstat(self.file)))
        count = cache.count_cached(at, size)
        cache.close()
        return count

    def take(self) -> tuple[int, int]:
        """Return the pages and the other looks since the last call."""
        taken = (self._pages, self._others)
        self._pages = self._others = 0
        return taken

    def close(self) -> None:
        os.close(self.file)


ALL_PAGES = -(-Looks.size // PAGE)
PIECE_PAGES = PIECE_BYTES // PAGE


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    made = Looks(tmp_path / "file", monkeypatch)
    yield made
    made.close()


def test_file_that_was_found_in_memory_is_not_looked_at_page_by_page_again(looks: Looks) -> None:
    assert looks.look() == looks.size
    assert looks.take() == (ALL_PAGES, 0)
    assert looks.look() == looks.size
    assert looks.look(PIECE_BYTES + 5, 1000) == 1000
    assert looks.look(looks.size - 1) == 1
    assert looks.take() == (0, 3)


def test_each_piece_is_looked_at_page_by_page_once_however_looks_are_cut(looks: Looks) -> None:
    at, step = 7, PIECE_BYTES // 3
    while at < looks.size:
        assert looks.look(at, step) == min(step, looks.size - at)
        at += step
    assert looks.take()[0] == ALL_PAGES


@pytest.mark.parametrize("page", [0, 1, PIECE_PAGES - 1, PIECE_PAGES, PIECE_PAGES + 9, ALL_PAGES - 1])
def test_page_that_is_dropped_from_a_remembered_piece_is_seen(looks: Looks, page: int) -> None:
    assert looks.look() == looks.size
    drop(looks.file, page * PAGE, PAGE)
    assert looks.look() == page * PAGE
    assert looks.look((page + 1) * PAGE) == max(0, looks.size - (page + 1) * PAGE)


def test_file_with_a_page_missing_is_forgotten_whole(looks: Looks) -> None:
    """What was dropped elsewhere may be read by others already: cachestat counts that."""
    assert looks.look() == looks.size
    drop(looks.file, 0, PAGE)
    assert looks.look(0, PAGE) == 0
    looks.take()
    assert looks.look(PIECE_BYTES, PIECE_BYTES) == PIECE_BYTES
    assert looks.take() == (PIECE_PAGES, 0)


def test_page_missing_before_the_first_byte_hides_none_after_it(looks: Looks) -> None:
    drop(looks.file, 0, PAGE)
    assert looks.look(3 * PAGE) == looks.size - 3 * PAGE
    assert looks.look(PAGE - 1) == 0


def test_file_that_was_written_is_looked_at_page_by_page_again(looks: Looks) -> None:
    assert looks.look() == looks.size
    looks.take()
    os.utime(f"/proc/self/fd/{looks.file}")
    assert looks.look() == looks.size
    assert looks.take() == (ALL_PAGES, 0)


@pytest.mark.parametrize("reason", ["no number", "call fails", "no probe"])
def test_mincore_is_asked_each_time_where_what_is_remembered_cannot_be_checked(
    looks: Looks, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """Kernels before 6.5 have no cachestat(2); where this process may not write a file, others refuse it."""
    if reason == "no number":
        monkeypatch.setattr(page_cache, "_CACHESTAT", 0)
    elif reason == "call fails":
        monkeypatch.setattr(page_cache, "_CACHESTAT", 2**20)
    else:
        monkeypatch.setattr(PageCache, "_is_read", lambda _cache, _at: False)
    for _ in range(3):
        assert looks.look() == looks.size
        assert looks.take()[0] == ALL_PAGES
    drop(looks.file, 5 * PAGE, PAGE)
    assert looks.look() == 5 * PAGE


async def test_page_that_is_being_read_again_is_not_in_memory(slow_disk: SlowDisk) -> None:
    """cachestat counts the pages that another process begins to read: sendfile would wait for them."""
    path = slow_disk.directory / "file"
    size = 8 * PAGE
    await asyncio.to_thread(path.write_bytes, os.urandom(size))
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        pieces = CachedPieces().of(os.fstat(file.fileno()))
        cache = PageCache(file.fileno(), os.geteuid(), size, pieces)
        await asyncio.to_thread(os.pread, file.fileno(), size, 0)
        assert cache.count_cached(0, size) == size
        await asyncio.to_thread(evict, path)
        await slow_disk.hold("READ")
        reading = asyncio.create_task(asyncio.to_thread(os.pread, file.fileno(), size, 0))
        await slow_disk.wait_held()
        if page_cache._count_pages(file.fileno(), 0, size) >= 0:
            assert page_cache._count_pages(file.fileno(), 0, size) == 8
            assert pieces.count_known(0, 1)
        assert cache.count_cached(0, size) == 0
        await slow_disk.release()
        assert len(await reading) == size
        assert cache.count_cached(0, size) == size
        cache.close()


def test_file_is_read_where_mincore_is_refused(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter of system calls, as systemd's, answers with EPERM; every byte counted as not in memory."""

    class Refusing:
        def __getattr__(self, name: str) -> Callable[..., int]:
            call: Callable[..., int] = getattr(real, name)
            return (lambda *_: -1) if name == "mincore" else call

    real = page_cache._LIBC
    monkeypatch.setattr(page_cache, "_LIBC", Refusing())
    before = Path("/proc/self/maps").read_text().count("/file")
    cache = PageCache(descriptor, os.geteuid(), SIZE)
    assert Path("/proc/self/maps").read_text().count("/file") == before
    assert cache.can_tell
    assert cache.count_cached(0, SIZE) == SIZE
    cache.close()

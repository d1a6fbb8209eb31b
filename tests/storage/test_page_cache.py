"""What is in memory of a file, on a real file system, from which pages are dropped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.storage.page_cache import PageCache

PAGE = os.sysconf("SC_PAGESIZE")
SIZE = 64 * PAGE + 5


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    """Give a test a file that is in memory."""
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file:
        # Page by page: the kernel keeps larger writes as large folios, and drops those as a whole.
        for at in range(0, SIZE, PAGE):
            file.write(os.urandom(min(PAGE, SIZE - at)))
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


@pytest.fixture(params=["mincore", "nowait"])
def cache(descriptor: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[PageCache]:
    """Ask in both ways; the second is for files that this process neither owns nor may write."""
    if request.param == "nowait":
        monkeypatch.setattr("gateway.storage.page_cache._LIBC", None)
        made = PageCache(descriptor, os.geteuid(), SIZE)
        monkeypatch.undo()
    else:
        made = PageCache(descriptor, os.geteuid(), SIZE)
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

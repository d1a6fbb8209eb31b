"""What is remembered of files that were found in memory, and for how long."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gateway.storage.cached_pieces import CachedPieces, FilePieces
from tests.clock import Clock


@pytest.fixture
def pieces(clock: Clock) -> CachedPieces:
    return CachedPieces(clock)


def make_file(pieces: CachedPieces, inode: int = 1, size: int = 2**40, changed: int = 5) -> FilePieces:
    """Return the pieces of a file with this status."""
    fields = [0o100644, inode, 7, 1, 0, 0, size, 0, 0, changed]
    return pieces.of(os.stat_result(fields, {"st_ctime_ns": changed}))


def test_pieces_are_known_from_the_first_that_was_found(pieces: CachedPieces) -> None:
    file = make_file(pieces)
    assert file.count_known(0, 8) == 0
    file.add(0, 3)
    file.add(5, 6)
    assert file.count_known(0, 8) == 3
    assert file.count_known(1, 2) == 1
    assert file.count_known(3, 8) == 0
    file.add(3, 5)
    assert file.count_known(0, 8) == 6
    assert make_file(pieces).count_known(2, 8) == 4


@pytest.mark.parametrize(("inode", "size", "changed"), [(2, 2**40, 5), (1, 1000, 5), (1, 2**40, 6)])
def test_file_with_another_number_size_or_change_is_another(
    pieces: CachedPieces, inode: int, size: int, changed: int
) -> None:
    make_file(pieces).add(0, 3)
    assert make_file(pieces, inode, size, changed).count_known(0, 3) == 0


def test_status_of_a_real_file_finds_it_again_until_it_is_written(tmp_path: Path, pieces: CachedPieces) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    pieces.of(path.stat()).add(0, 1)
    assert pieces.of(path.stat()).count_known(0, 1) == 1
    os.utime(path)
    assert pieces.of(path.stat()).count_known(0, 1) == 0


def test_piece_is_forgotten_after_half_a_minute_to_a_minute_without_a_look(pieces: CachedPieces, clock: Clock) -> None:
    file = make_file(pieces)
    file.add(0, 2)
    clock.now += 29.9
    assert file.count_known(0, 2) == 2
    file.add(0, 1)
    clock.now += 30
    assert file.count_known(0, 2) == 1
    clock.now += 30
    assert file.count_known(0, 2) == 0


def test_nothing_is_known_after_a_long_pause(pieces: CachedPieces, clock: Clock) -> None:
    file = make_file(pieces)
    file.add(0, 2)
    clock.now += 60
    assert file.count_known(0, 2) == 0


def test_forgotten_file_is_forgotten_whole_and_alone(pieces: CachedPieces, clock: Clock) -> None:
    file, other = make_file(pieces), make_file(pieces, inode=2)
    for each in (file, other):
        each.add(0, 2)
    clock.now += 25
    for each in (file, other):
        each.add(5, 6)
    file.forget()
    assert (file.count_known(0, 2), file.count_known(5, 6)) == (0, 0)
    assert (other.count_known(0, 2), other.count_known(5, 6)) == (2, 1)


def test_sixty_four_files_are_remembered(pieces: CachedPieces) -> None:
    files = [make_file(pieces, inode) for inode in range(65)]
    for file in files:
        file.add(0, 1)
    assert [file.count_known(0, 1) for file in files] == [0] + [1] * 64


def test_memory_is_bounded_for_files_of_any_size(pieces: CachedPieces, clock: Clock) -> None:
    """A sparse file may have a size of 8 EiB."""
    for _ in range(3):
        for inode in range(1000):
            file = make_file(pieces, inode)
            for first in (0, 2**16 - 1, 2**16, 2**41):
                file.add(first, first + 4)
            assert file.count_known(2**16 - 1, 2**16 + 3) == 1
            assert file.count_known(2**41, 2**41 + 4) == 0
        clock.now += 30
    found = (pieces._found, pieces._found_before)
    assert sum(sys.getsizeof(bits) for each in found for bits in each.values()) < 1.2e6

"""Standard output of several processes: lines stay whole, whatever it takes and whenever a process is killed."""

from __future__ import annotations

import io
import os
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.observe.output import SharedOutput, open_lock

TIMEOUT_SECONDS = 20.0
#: Writes lines; its arguments: descriptors of output and lock, a mark, the length of each line, how many.
WRITER = """
import io, sys
from gateway.observe.output import SharedOutput
stream, lock, mark, length, count = (int(each) if each.isdigit() else each for each in sys.argv[1:])
output = SharedOutput(io.FileIO(stream, "w"), lock)
data = b"".join(f"{mark}{number} ".encode().ljust(length, b"x") + b"\\n" for number in range(count))
while data:
    data = data[output.write(data) or 0:]
"""
Start = Callable[[int, str, int, int], "subprocess.Popen[bytes]"]


@pytest.fixture
def lock() -> Iterator[int]:
    lock = open_lock()
    yield lock
    os.close(lock)


@pytest.fixture
def start(lock: int) -> Iterator[Start]:
    """Start a process that writes lines: to a descriptor, with a mark, of this length, this many."""
    processes = []

    def start(stream: int, mark: str, length: int, count: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WRITER, str(stream), str(lock), mark, str(length), str(count)]
        process = subprocess.Popen(command, pass_fds=[stream, lock])
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


class Pipe:
    def __init__(self) -> None:
        reading, self.writing = os.pipe()
        self.stream = io.BufferedReader(io.FileIO(reading))

    def read_lines(self, count: int) -> list[bytes]:
        return [self.stream.readline() for _ in range(count)]

    def wait_until_full(self) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while select.select([], [self.writing], [], 0)[1]:
            assert time.monotonic() < deadline
            time.sleep(0.001)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.stream.close()
    os.close(pipe.writing)


def check_lines(lines: list[bytes], length: int, count: int, marks: str) -> None:
    """Check that each process has written its lines whole and in order."""
    assert {len(line) for line in lines} == {length + 1}
    assert Counter(line[:1].decode() for line in lines) == dict.fromkeys(marks, count)
    for mark in marks:
        numbers = [int(line.split()[0][1:]) for line in lines if line.startswith(mark.encode())]
        assert numbers == list(range(count))


@pytest.mark.parametrize("length", [100, 5000, 200_000])
def test_lines_of_several_processes_are_whole_in_a_pipe(start: Start, pipe: Pipe, length: int) -> None:
    count = 1_000_000 // length
    for mark in "abc":
        start(pipe.writing, mark, length, count)
    check_lines(pipe.read_lines(3 * count), length, count, "abc")


@pytest.mark.parametrize("flags", [0, os.O_APPEND])
def test_lines_of_several_processes_are_whole_in_a_file(start: Start, tmp_path: Path, flags: int) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags)
    writers = [start(descriptor, mark, 1000, 1000) for mark in "abc"]
    assert [writer.wait(TIMEOUT_SECONDS) for writer in writers] == [0, 0, 0]
    os.close(descriptor)
    check_lines(path.read_bytes().splitlines(keepends=True), 1000, 1000, "abc")


def test_process_that_is_killed_while_it_writes_leaves_whole_lines_in_a_pipe(start: Start, pipe: Pipe) -> None:
    killed = start(pipe.writing, "a", 1000, 1000)
    pipe.wait_until_full()
    next_writer = start(pipe.writing, "b", 1000, 10)
    killed.kill()
    killed.wait()
    lines = list(iter(pipe.stream.readline, b"b9 ".ljust(1000, b"x") + b"\n"))
    assert next_writer.wait(TIMEOUT_SECONDS) == 0
    assert {len(line) for line in lines} == {1001}


def test_room_of_a_pipe_whose_pages_are_not_full_is_not_overestimated(start: Start, pipe: Pipe) -> None:
    """The beginning of a line was left, and the next line followed on the same line."""
    # Each page holds one line, once the first large write is read.
    killed = start(pipe.writing, "a", 2100, 200)
    for _ in range(50):
        pipe.wait_until_full()
        pipe.read_lines(1)
    pipe.wait_until_full()
    next_writer = start(pipe.writing, "b", 2100, 1)
    killed.kill()
    killed.wait()
    lines = [pipe.stream.readline()]
    while b"b0 " not in lines[-1]:
        lines.append(pipe.stream.readline())
    assert next_writer.wait(TIMEOUT_SECONDS) == 0
    assert {len(line) for line in lines} == {2101}


def test_process_that_is_killed_within_a_long_line_leaves_a_line_of_its_own(start: Start, pipe: Pipe) -> None:
    killed = start(pipe.writing, "a", 200_000, 1)
    pipe.wait_until_full()
    # It waits for the lock: the system releases that.
    start(pipe.writing, "b", 1000, 10)
    killed.kill()
    killed.wait()
    (cut,) = pipe.read_lines(1)
    assert cut.startswith(b"a0 xxx")
    assert len(cut) < 200_001
    check_lines(pipe.read_lines(10), 1000, 10, "b")


def test_line_that_was_written_in_part_is_continued_before_another_process_writes(start: Start, lock: int) -> None:
    reading, writing = socket.socketpair()
    with reading, writing:
        writing.setblocking(False)
        output = SharedOutput(io.FileIO(writing.fileno(), "w", closefd=False), lock)
        rest = b"a" * 5_000_000 + b"\n"
        rest = rest[output.write(rest) :]
        assert output.write(rest) is None
        writer = start(writing.fileno(), "b", 1000, 10)
        stream = reading.makefile("rb")
        received = b""
        while rest:
            received += stream.read1()
            rest = rest[output.write(rest) or 0 :]
        while not received.endswith(b"\n"):
            received += stream.readline()
        assert received == b"a" * 5_000_000 + b"\n"
        check_lines([stream.readline() for _ in range(10)], 1000, 10, "b")
        assert writer.wait(TIMEOUT_SECONDS) == 0


def test_write_that_fails_keeps_no_process_waiting_and_leaves_no_empty_line(
    start: Start, pipe: Pipe, lock: int
) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        output = SharedOutput(full, lock)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                output.write(b"a\n")
    start(pipe.writing, "b", 1000, 10)
    check_lines(pipe.read_lines(10), 1000, 10, "b")

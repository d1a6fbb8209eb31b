"""The log's writer: a standard output that is blocked, full or closed costs lines, which are counted, nothing else."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import select
import threading
import time
from collections.abc import Iterator

import pytest

from gateway.observe.log import JsonFormatter, LineWriter
from gateway.observe.output import SharedOutput, open_lock

TIMEOUT_SECONDS = 20.0
RECORD = logging.LogRecord("x", logging.INFO, "", 0, "record", (), None)


class Pipe:
    """A pipe with the writer of the log at one end."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.stream = io.BufferedReader(io.FileIO(self.reading))
        self.writer = LineWriter(io.FileIO(self.writing, "w", closefd=False))
        self.writer.setFormatter(JsonFormatter())

    def read_lines(self, count: int) -> list[str]:
        return [self.stream.readline().decode().removesuffix("\n") for _ in range(count)]

    def block(self) -> None:
        """Have the writer wait for room in the pipe, within a line that the first read returns."""
        self.writer.add_line("x" * 2**20)
        self.wait_until_taken()

    def end(self) -> None:
        """Close the end that was written to."""
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), self.writing)

    def fill(self, line: str) -> None:
        """Add lines until some were dropped."""
        while not self.writer.dropped_lines:
            self.writer.add_line(line)

    def wait_until_asleep(self) -> None:
        """Wait until the writer looks for no lines any more."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not self.writer._is_asleep and time.monotonic() < deadline:
            time.sleep(0.001)
        assert self.writer._is_asleep

    def wait_until_taken(self) -> None:
        """Wait until the writer has taken all lines, to write them."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self.writer._lines and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not self.writer._lines


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    monkeypatch.setattr("gateway.observe.log._INTERVAL_SECONDS", 0.001)
    monkeypatch.setattr("gateway.observe.log._RETRY_SECONDS", 0.001)
    pipe = Pipe()
    yield pipe
    # The pipe has no reader: a write that blocks fails now.
    pipe.stream.close()
    pipe.writer.stop()
    # Or it would write to what has the descriptor next.
    pipe.writer._thread.join(TIMEOUT_SECONDS)
    os.close(pipe.writing)


def test_lines_are_written_in_order_and_the_rest_at_the_end(pipe: Pipe) -> None:
    for number in range(1000):
        pipe.writer.add_line(str(number))
    pipe.writer.stop()
    assert pipe.read_lines(1000) == [str(number) for number in range(1000)]
    assert not pipe.writer.dropped_lines


def test_writer_sleeps_without_lines_until_a_line_a_record_or_the_end_wakes_it(pipe: Pipe) -> None:
    """It looked for lines 20 times a second, which was most of what a gateway without requests did."""
    for _ in range(3):
        pipe.wait_until_asleep()
        pipe.writer.add_line("line")
        assert pipe.read_lines(1) == ["line"]
        pipe.wait_until_asleep()
        pipe.writer.handle(RECORD)
        assert '"record"' in pipe.read_lines(1)[0]
    pipe.wait_until_asleep()
    pipe.writer.stop()
    assert not pipe.writer._thread.is_alive()


def test_no_line_of_any_thread_is_lost_while_lines_are_written(pipe: Pipe) -> None:
    threads = [threading.Thread(target=lambda: [pipe.writer.handle(RECORD) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2000):
        pipe.writer.add_line(str(number))
    reader = threading.Thread(target=lambda: lines.extend(pipe.read_lines(2800)))
    lines: list[str] = []
    reader.start()
    for thread in [*threads, reader]:
        thread.join(TIMEOUT_SECONDS)
    pipe.writer.stop()
    assert [line for line in lines if line.isdigit()] == [str(number) for number in range(2000)]
    assert sum('"record"' in line for line in lines) == 800
    assert (pipe.writer.held_bytes, pipe.writer.dropped_lines) == (0, 0)


def test_blocked_output_holds_8_mib_of_lines_and_the_gap_is_reported(pipe: Pipe) -> None:
    """100,000 lines of any length were held: 120 MiB, and more with long ones."""
    pipe.block()
    line = "x" * 10_000
    held = 8 * 2**20 // (len(line) + 64)
    for _ in range(2000):
        pipe.writer.add_line(line)
    assert pipe.writer.held_bytes <= 8 * 2**20
    assert pipe.writer.dropped_lines == 2000 - held
    _, gap, *lines = pipe.read_lines(2 + held)
    gap = json.loads(gap)
    assert (gap["level"], gap["logger"]) == ("warning", "gateway")
    assert gap["message"].startswith(f"{2000 - held} log lines before this one were dropped")
    assert lines == [line] * held


def test_line_that_was_written_in_part_is_continued(pipe: Pipe) -> None:
    lines = [f"{number} " + "x" * 100_000 for number in range(20)]
    for line in lines:
        pipe.writer.add_line(line)
    assert pipe.read_lines(20) == lines


def test_writing_goes_on_after_the_output_was_full(pipe: Pipe) -> None:
    """The thread ended for ever with the first ENOSPC."""
    kept = os.dup(pipe.writing)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, pipe.writing)
    pipe.writer.add_line("held")
    pipe.wait_until_taken()
    os.dup2(kept, pipe.writing)
    assert pipe.read_lines(1) == ["held"]
    os.close(kept)
    os.close(full)


def test_writing_goes_on_after_a_reader_left_and_another_came(pipe: Pipe) -> None:
    """The thread ended for ever with the first EPIPE."""
    reading, writing = os.pipe()
    pipe.stream.close()
    pipe.fill("x" * 1000)
    pipe.stream = io.BufferedReader(io.FileIO(reading))
    os.dup2(writing, pipe.writing)
    os.close(writing)
    # Up to 128 KiB of lines were taken before any was dropped.
    lines = pipe.read_lines(200)
    assert any("dropped" in line for line in lines)


def test_output_that_does_not_block_when_it_is_full_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    lines = [f"{number} " + "x" * 100_000 for number in range(20)]
    for line in lines:
        pipe.writer.add_line(line)
    assert pipe.read_lines(20) == lines


@pytest.mark.parametrize("is_shared", [False, True])
def test_output_that_does_not_block_and_is_full_is_waited_for_at_the_end(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, *, is_shared: bool
) -> None:
    """The lines that had no room were dropped at once."""
    # The writer looks for lines once, at the end.
    monkeypatch.setattr("gateway.observe.log._INTERVAL_SECONDS", TIMEOUT_SECONDS)
    monkeypatch.setattr("gateway.observe.log._LAST_SECONDS", TIMEOUT_SECONDS)
    os.set_blocking(pipe.writing, False)
    stream = io.FileIO(pipe.writing, "w", closefd=False)
    lock = open_lock()
    writer = LineWriter(SharedOutput(stream, lock) if is_shared else stream)
    lines = [f"{number} " + "x" * 100_000 for number in range(20)]
    for line in lines:
        writer.add_line(line)
    stopping = threading.Thread(target=writer.stop)
    stopping.start()
    while select.select([], [pipe.writing], [], 0)[1]:
        time.sleep(0.001)
    assert pipe.read_lines(20) == lines
    stopping.join()
    assert not writer.dropped_lines
    os.close(lock)


def test_output_that_stays_full_is_not_waited_for_longer_than_the_end_may_take(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.observe.log._LAST_SECONDS", 0.01)
    os.set_blocking(pipe.writing, False)
    for _ in range(20):
        pipe.writer.add_line("x" * 10_000)
    pipe.writer.stop()
    pipe.writer._thread.join(TIMEOUT_SECONDS)
    assert not pipe.writer._thread.is_alive()
    assert 20 - 7 <= pipe.writer.dropped_lines <= 20


def test_blocked_output_does_not_hold_up_the_end_and_lines_that_are_left_are_counted(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.observe.log._LAST_SECONDS", 0.01)
    count, written_at_most = 2000, 64
    for _ in range(count):
        pipe.writer.add_line("x" * 1024)
    pipe.writer.stop()
    assert count - written_at_most <= pipe.writer.dropped_lines <= count
    assert pipe.writer.held_bytes == 0


GARBAGE_COUNT = 5000


class Garbage:
    """Logs when it is collected, which is at one of the next allocations, and leaves as much."""

    def __init__(self, writer: LineWriter, records: list[object]) -> None:
        self._writer = writer
        self._records = records
        self._itself = self

    def __del__(self) -> None:
        if len(self._records) < GARBAGE_COUNT:
            # More objects than before: a few more begin a collection, by turns at each place of the code.
            self._records.append([set[None](), set[None](), set[None]()])
            gc.set_threshold(2 + len(self._records) % 9, 10**9, 10**9)
            self._writer.handle(RECORD)
            Garbage(self._writer, self._records)


@pytest.fixture
def busy_collector() -> Iterator[None]:
    """Collect garbage after a few allocations."""
    thresholds = gc.get_threshold()
    gc.set_threshold(2, 10**9, 10**9)
    yield
    gc.set_threshold(*thresholds)


@pytest.mark.parametrize("is_blocked", [False, True])
@pytest.mark.usefixtures("busy_collector")
def test_record_that_garbage_collection_makes_within_the_log_waits_for_no_lock(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, *, is_blocked: bool
) -> None:
    """The thread waited for ever for a lock that it had itself, or for one whose owner waited for logging's."""
    monkeypatch.setattr("gateway.observe.log._LAST_SECONDS", TIMEOUT_SECONDS)
    line, records, received = "x" * 10_000, list[object](), list[bytes]()

    def add_lines() -> None:
        for _ in range(1000):
            pipe.writer.add_line(line)

    def handle_records() -> None:
        for _ in range(200):
            pipe.writer.handle(RECORD)

    if is_blocked:
        pipe.block()
        # Each further line drops one.
        add_lines()
    adding = [threading.Thread(target=each, daemon=True) for each in (add_lines, handle_records, handle_records)]
    reading = threading.Thread(target=lambda: received.extend(pipe.stream), daemon=True)
    if not is_blocked:
        reading.start()
    Garbage(pipe.writer, records)
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join(TIMEOUT_SECONDS)
        assert not thread.is_alive()
    while len(records) < GARBAGE_COUNT:
        gc.collect(0)
    if is_blocked:
        assert pipe.writer.held_bytes <= 8 * 2**20
        reading.start()
    pipe.writer.stop()
    pipe.end()
    reading.join(TIMEOUT_SECONDS)
    gaps = sum(b"were dropped" in each for each in received)
    added = 1400 + is_blocked * 1001 + GARBAGE_COUNT
    assert len(received) - gaps + pipe.writer.dropped_lines == added

"""What workers write to standard error."""

from __future__ import annotations

import asyncio
import logging
import os

import pytest

from gateway.workers import output
from gateway.workers.output import LastWords, Pipe
from tests.peers import wait_until


@pytest.mark.expected_log("gateway", "worker 1 wrote to standard error", reason="it is the test's subject")
async def test_burst_of_standard_error_is_one_record_and_the_end_of_it_is_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(output, "_BURST_SECONDS", 0.01)
    words = LastWords(lambda: "worker 1")
    words.feed(b"Traceback\n")
    words.feed(b"  KeyError\n")
    await wait_until(lambda: caplog.records)
    words.feed(b"x" * 20_000 + b"\nlast")
    words.hold()
    await asyncio.sleep(0.02)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert vars(record)["keys"] == {"stderr": "Traceback\n  KeyError"}
    assert words.text.endswith("xx\nlast")
    assert len(words.text) <= 16 * 1024


async def test_pipe_is_read_to_its_end_and_not_longer_than_that() -> None:
    received = bytearray()
    reading, writing = os.pipe()
    pipe = await Pipe.open(os.fdopen(reading, "rb", 0), received.extend)
    os.write(writing, b"last")
    await wait_until(lambda: received == b"last")
    # Another process keeps it open.
    await pipe.close(0.01)
    await pipe.ended.wait()
    os.close(writing)

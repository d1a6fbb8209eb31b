"""The checks of tests/leaks.py find what they are for."""

from __future__ import annotations

import asyncio
import gc
import logging
import os

import pytest

from tests.leaks import ExpectedLog, LogRecords, check_nothing_left, open_descriptors, stray_lines


async def test_descriptor_that_stays_open_is_found_even_if_another_one_was_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.leaks._ATTEMPTS", 2)
    closed = os.open("/dev/null", os.O_RDONLY)
    before = open_descriptors()
    os.close(closed)
    left = os.open("/dev/zero", os.O_RDONLY)
    with pytest.raises(AssertionError, match="/dev/zero"):
        await check_nothing_left(asyncio.all_tasks(), before)
    os.close(left)
    await check_nothing_left(asyncio.all_tasks(), before)


async def test_task_that_still_runs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.leaks._ATTEMPTS", 2)
    before = asyncio.all_tasks()
    task = asyncio.create_task(asyncio.sleep(60), name="left")
    with pytest.raises(AssertionError, match="left"):
        await check_nothing_left(before, open_descriptors())
    task.cancel()


@pytest.mark.expected_log("asyncio", "never retrieved(?s:.*)for this test", reason="what this test is about")
async def test_exception_of_a_task_that_was_never_retrieved_is_found() -> None:
    async def fail() -> None:
        raise ValueError("for this test")

    with LogRecords() as logs:
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        del task
        gc.collect()
    assert "Task exception was never retrieved" in logs.unexpected([])[0]


@pytest.mark.expected_log("aiohttp", "careful", reason="what this test is about")
def test_only_a_declared_record_passes() -> None:
    declared = ExpectedLog("aiohttp", "care", "a test")
    with LogRecords() as logs:
        logging.getLogger("aiohttp.server").warning("careful")
    assert logs.unexpected([declared]) == []
    assert logs.unexpected([ExpectedLog("gateway", "care", "a test")]) == ["aiohttp.server WARNING: careful"]


def test_lines_of_a_process_that_report_a_leak_are_found() -> None:
    assert list(stray_lines("listening\nUnclosed client session\nbye")) == ["Unclosed client session"]

"""The tasks of the pool that keeps workers running."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.workers.load import LoadTable
from gateway.workers.pool import StartError, WorkerPool
from gateway.workers.process import WorkerProcess
from gateway.workers.template import Template


@pytest.mark.expected_log("gateway", "bug in", reason="what the test is about")
async def test_place_that_raises_is_reported_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The start waited for a worker that no place would start, and the exception was logged when it was collected."""

    async def start(*_: Any, **__: Any) -> WorkerProcess:
        raise LookupError("a bug")

    monkeypatch.setattr(WorkerProcess, "start", start)
    template = cast(Template, SimpleNamespace(table=LoadTable(), ended=asyncio.Event()))
    pool = WorkerPool(cast(Any, None), template)
    try:
        with pytest.raises(StartError, match=r"bug in 'worker place 0'.*a bug"):
            await pool.start(socket.socket(), 1)
    finally:
        await pool.end()
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)

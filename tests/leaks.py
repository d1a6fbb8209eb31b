"""Checks that a test leaves nothing behind: no open descriptor, no running task, no unexpected log record.

tests/conftest.py applies them to every async test, so to every test that starts a gateway in its own loop. A gateway
that runs as a process is checked by its exit code and by `stray_lines` of its output.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: Loggers whose warnings mean a bug in the gateway or in a test: "Task exception was never retrieved" and every other
#: call of asyncio's exception handler, "Unclosed client session", a bug in an exchange.
WATCHED_LOGGERS = ("asyncio", "aiohttp", "gateway")
_STRAY = re.compile(
    r"never retrieved|never awaited|Unclosed |Traceback|Exception ignored|was destroyed but it is pending"
)
#: obstore keeps one Rust runtime per process; it starts with the first request and never ends.
_RUNTIME_DESCRIPTORS = frozenset({"anon_inode:[eventpoll]", "anon_inode:[eventfd]"})
#: How often to look again; sockets of closed transports close in the next turns of the loop.
_ATTEMPTS, _PAUSE_SECONDS = 500, 0.01


def open_descriptors() -> set[tuple[int, str]]:
    """Return the descriptors this process has open, each with what it leads to.

    Descriptors are compared by identity: a count stays the same if one is leaked while an older one is closed.
    """
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        # Gone by now: the descriptor of this listing, and what threads have closed.
        with contextlib.suppress(FileNotFoundError):
            found.add((int(link.name), os.readlink(link)))
    return found


async def check_nothing_left(tasks_before: set[asyncio.Task[object]], descriptors: set[tuple[int, str]]) -> None:
    """Assert that no task and no descriptor is left that was not there before; wait for them for some seconds."""
    for attempt in range(_ATTEMPTS):
        tasks = asyncio.all_tasks() - tasks_before - {asyncio.current_task()}
        left = open_descriptors() - descriptors
        if "obstore" in sys.modules:
            left = {each for each in left if each[1] not in _RUNTIME_DESCRIPTORS}
        if not tasks and not left:
            return
        await asyncio.sleep(_PAUSE_SECONDS if attempt else 0)
    assert not tasks, f"tasks left: {tasks}"
    assert not left, f"descriptors left: {sorted(left)}"


@dataclass(frozen=True)
class ExpectedLog:
    """What a test's marker `expected_log(logger, pattern, reason=...)` declares."""

    logger: str
    pattern: str
    reason: str

    def matches(self, record: logging.LogRecord) -> bool:
        """Return whether a record is the declared one; child loggers count as their parent."""
        is_logger = record.name == self.logger or record.name.startswith(f"{self.logger}.")
        return is_logger and re.search(self.pattern, record.getMessage()) is not None


class LogRecords(logging.Handler):
    """Keeps the records of the watched loggers from WARNING on. A context manager: attached inside, detached after."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def __enter__(self) -> LogRecords:
        self._levels = {name: logging.getLogger(name).level for name in WATCHED_LOGGERS}
        for name in WATCHED_LOGGERS:
            # `gateway run` in the same process silences aiohttp.
            logging.getLogger(name).setLevel(logging.NOTSET)
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
            logging.getLogger(name).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.records.append(record)

    def unexpected(self, expected: Iterable[ExpectedLog]) -> list[str]:
        """Return the records that no declaration matches, each as one text with its traceback."""
        declared = list(expected)
        formatter = logging.Formatter("%(name)s %(levelname)s: %(message)s")
        return [
            formatter.format(record)
            for record in self.records
            if not any(declaration.matches(record) for declaration in declared)
        ]


def stray_lines(output: str) -> Iterator[str]:
    """Yield the lines a gateway process wrote that report a leak or a bug: its log on stdout, anything on stderr."""
    return (line for line in output.splitlines() if _STRAY.search(line))

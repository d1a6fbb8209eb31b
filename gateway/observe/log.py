"""The gateway's log: JSON objects, one a line, on standard output, written from a thread."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
import threading
from collections import deque
from datetime import UTC, datetime
from typing import Any, Final, TextIO

_MAX_LINES: Final = 100_000
_INTERVAL_SECONDS: Final = 0.1
_LAST_SECONDS: Final = 2.0


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for everything that is no exchange."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        line: dict[str, Any] = {
            "time": show_time(record.created),
            "level": record.levelname.lower(),
            "event": "message",
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def start_logging() -> LineWriter:
    """Send log lines to standard output. Returns what to stop at the end."""
    writer = LineWriter(sys.stdout)
    writer.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[writer], force=True)
    # aiohttp logs what the access log says better.
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    return writer


class LineWriter(logging.Handler):
    """Gathers lines and writes them from a thread, some times a second.

    A reader that stops reading must not stop the gateway; and a thread woken for every line costs an exchange more
    than all of its own work (logging's QueueListener: a quarter of the CPU of small requests). Where the reader
    stays away, the oldest lines are dropped.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        self._lines.append(self.format(record) + "\n")

    def note(self, line: str) -> None:
        """Take the line of an exchange, past the logging module: a record of it would cost more than the line."""
        self._lines.append(line + "\n")

    def stop(self) -> None:
        """Write what is left, unless the reader takes too long for it."""
        self._stopping.set()
        self._thread.join(_LAST_SECONDS)

    def _write(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._stopping.wait(_INTERVAL_SECONDS)
            lines = []
            with contextlib.suppress(IndexError):
                while True:
                    lines.append(self._lines.popleft())
            if lines:
                self._stream.write("".join(lines))
                self._stream.flush()


def show_time(seconds: float) -> str:
    """Return a time of day as in RFC 3339, in UTC, to the millisecond."""
    whole = int(seconds)
    return f"{_show_second(whole)}.{int((seconds - whole) * 1000):03}+00:00"


@functools.lru_cache(maxsize=1)
def _show_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")

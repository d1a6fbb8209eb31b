"""The log: one JSON object per line on standard output, written by a thread."""

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
    """Formats log records as one JSON object per line; access log lines are formatted in `downstream.access_log`.

    A record made with `extra={"keys": {...}}` has these keys as well; they may replace `event`, which is `message`
    otherwise.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the JSON object of a record; exceptions are in its key `traceback`."""
        line: dict[str, Any] = {
            "time": show_time(record.created),
            "level": record.levelname.lower(),
            "event": "message",
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "keys", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def start_logging() -> LineWriter:
    """Send all log lines to standard output. The caller must call `stop` of the returned writer at the end."""
    writer = LineWriter(sys.stdout)
    writer.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[writer], force=True)
    # aiohttp's messages repeat what the access log has in more detail.
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    return writer


class LineWriter(logging.Handler):
    """Collects lines in memory; a thread writes them to the stream every 0.1 s.

    So a blocked standard output does not block the event loop: the oldest lines are dropped then, beyond 100,000. A
    thread that is woken for every line (logging's QueueListener) took a quarter of the CPU time of small requests.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Add the line of a log record."""
        self._lines.append(self.format(record) + "\n")

    def add_line(self, line: str) -> None:
        """Add an access log line. It bypasses the logging module: a LogRecord costs more than the line."""
        self._lines.append(line + "\n")

    def stop(self) -> None:
        """Write the remaining lines; give up after 2 s if the stream is blocked."""
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
    """Return a Unix time in the form of RFC 3339, in UTC, with milliseconds."""
    whole = int(seconds)
    return f"{_show_second(whole)}.{int((seconds - whole) * 1000):03}+00:00"


@functools.lru_cache(maxsize=1)
def _show_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")

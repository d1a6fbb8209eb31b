"""One structured line per exchange, at its end: JSON on standard output, keys that do not change."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from gateway.downstream import Exchange
from gateway.tally import Side
from gateway.transfer import Transfer

#: Takes what there is to be told of an exchange.
Note = Callable[[dict[str, Any]], None]
_MAX_TARGET_CHARACTERS: Final = 512
_MOST_LINES: Final = 100_000
_INTERVAL_SECONDS: Final = 0.1
_LAST_SECONDS: Final = 2.0


def describe_exchange(exchange: Exchange, seconds: float) -> dict[str, Any]:
    """Return what the log tells of an exchange that took so many seconds."""
    named = exchange.named
    upload, download = exchange.upload, exchange.download
    waits = {**_waits(upload), **_waits(download)}
    return {
        "route": named.route.name if named.route else None,
        "action": named.route.action_name if named.route else None,
        "method": exchange.method,
        # Whatever a client sent is quoted by JSON, control characters and all.
        "target": exchange.raw_target[:_MAX_TARGET_CHARACTERS],
        "status": exchange.status,
        "outcome": exchange.outcome.value,
        "blame": exchange.blame.value,
        "code": exchange.fault.kind.code if exchange.fault else None,
        "upload": upload.outcome.value if upload and upload.outcome else None,
        "download": download.outcome.value if download and download.outcome else None,
        "bytes_up": upload.moved_bytes if upload else 0,
        "bytes_down": download.moved_bytes if download else 0,
        "lane_up": upload.lane if upload else None,
        "lane_down": download.lane if download else None,
        "seconds": round(seconds, 6),
        "first_byte_seconds": exchange.first_byte_seconds and round(exchange.first_byte_seconds, 6),
        "wait_seconds": waits,
        "parts": exchange.parts or None,
        "client": exchange.client,
        "upstream": named.upstream or None,
        "endpoint": named.endpoint or None,
        "request_id": exchange.trace.request_id.decode("latin-1"),
        "trace_id": exchange.trace.traceparent[3:35].decode("latin-1"),
    }


def _waits(transfer: Transfer | None) -> dict[str, float]:
    if transfer is None:
        return {}
    course = transfer.course
    waits = {
        course.read_side.value: round(transfer.read_seconds, 6),
        course.write_side.value: round(transfer.write_seconds, 6),
    }
    if transfer.filter_seconds:
        waits[Side.FILTER.value] = round(transfer.filter_seconds, 6)
    return waits


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for everything that is no exchange."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        line: dict[str, Any] = {
            "time": _show_time(record.created),
            "level": record.levelname.lower(),
            "event": "message",
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _show_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


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
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        self._lines.append(self.format(record) + "\n")

    def note(self, exchange: dict[str, Any]) -> None:
        """Take an exchange, past the logging module: a record of it would cost more than its line."""
        now = _show_time(time.time())  # noqa: TID251 (the time of day, not a duration)
        line = {"time": now, "level": "info", "event": "exchange", **exchange}
        self._lines.append(json.dumps(line) + "\n")

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

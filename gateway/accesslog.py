"""One structured line per exchange, at its end: JSON on standard output, keys that do not change."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from typing import Any, Final, TextIO

from gateway.downstream import Exchange
from gateway.tally import Side
from gateway.transfer import Transfer

#: Takes the line of an exchange.
Note = Callable[[str], None]
_MAX_TARGET_CHARACTERS: Final = 512
_MOST_LINES: Final = 100_000
_INTERVAL_SECONDS: Final = 0.1
_LAST_SECONDS: Final = 2.0


def describe_exchange(exchange: Exchange, seconds: float) -> str:
    """Return the line of an exchange that took so many seconds: a JSON object whose keys are always the same.

    Written out by hand, since a dict and its encoder cost twice as much, a tenth of a small request: whatever a
    client or a config said is quoted by json's own function, control characters and all, and the rest are numbers and
    the words of our own enumerations.
    """
    named, fault, trace = exchange.named, exchange.fault, exchange.trace
    route, first = named.route, exchange.first_byte_seconds
    upload, download = exchange.upload, exchange.download
    waits = ", ".join(wait for transfer in (upload, download) if transfer is not None for wait in _waits(transfer))
    return (
        f'{{"time": "{_show_time(time.time())}", "level": "info", "event": "exchange", '  # noqa: TID251 (the time of day)
        f'"route": {_quote(route.name if route else None)}, "action": {_quote(route.action_name if route else None)}, '
        f'"method": {_quote(exchange.method)}, "target": {_quote(exchange.raw_target[:_MAX_TARGET_CHARACTERS])}, '
        f'"status": {exchange.status}, "outcome": "{exchange.outcome}", "blame": "{exchange.blame}", '
        f'"code": {_quote(fault.kind.code if fault else None)}, '
        f'"upload": {_quote(upload.outcome if upload else None)}, '
        f'"download": {_quote(download.outcome if download else None)}, '
        f'"bytes_up": {upload.moved_bytes if upload else 0}, "bytes_down": {download.moved_bytes if download else 0}, '
        f'"lane_up": {_quote(upload.lane if upload else None)}, '
        f'"lane_down": {_quote(download.lane if download else None)}, '
        f'"seconds": {seconds:.6f}, "first_byte_seconds": {"null" if first is None else f"{first:.6f}"}, '
        f'"wait_seconds": {{{waits}}}, "parts": {json.dumps(exchange.parts) if exchange.parts else "null"}, '
        f'"client": {_quote(exchange.client)}, "upstream": {_quote(named.upstream or None)}, '
        f'"endpoint": {_quote(named.endpoint or None)}, "request_id": {_quote(trace.request_id.decode("latin-1"))}, '
        f'"trace_id": "{trace.traceparent[3:35].decode("latin-1")}"}}'
    )


def _quote(text: str | None) -> str:
    return "null" if text is None else encode_basestring_ascii(text)


def _waits(transfer: Transfer) -> Iterator[str]:
    course = transfer.course
    yield f'"{course.read_side}": {transfer.read_seconds:.6f}'
    yield f'"{course.write_side}": {transfer.write_seconds:.6f}'
    if transfer.filter_seconds:
        yield f'"{Side.FILTER}": {transfer.filter_seconds:.6f}'


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
    """Return a time of day as in RFC 3339, in UTC, to the millisecond."""
    whole = int(seconds)
    return f"{_show_second(whole)}.{int((seconds - whole) * 1000):03}+00:00"


@functools.lru_cache(maxsize=1)
def _show_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


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

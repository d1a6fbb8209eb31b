"""The log: one line per event on standard output, JSON or for people, written by a thread."""

from __future__ import annotations

import contextlib
import enum
import functools
import io
import json
import logging
import math
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

from gateway.observe.output import Output, SharedOutput

#: Some 20,000 lines, a few seconds of a busy gateway.
_MAX_BYTES: Final = 8 * 2**20
#: What a line takes beside its characters.
_LINE_BYTES: Final = 64
#: Written per call, if lines are about as long as each other. glibc maps what is larger anew each time.
_BATCH_BYTES: Final = 128 * 1024
_INTERVAL_SECONDS: Final = 0.05
#: After a failed write.
_RETRY_SECONDS: Final = 1.0
_LAST_SECONDS: Final = 2.0


class LineStyle(enum.Enum):
    """How lines look."""

    JSON = enum.auto()
    TEXT = enum.auto()
    #: Text with colors, for a terminal.
    COLOR = enum.auto()


class Color(enum.StrEnum):
    """The colors of a terminal, as parameters of ECMA-48's SGR sequence."""

    RED = "31"
    GREEN = "32"
    YELLOW = "33"
    CYAN = "36"


def paint(text: str, color: Color) -> str:
    """Return a text in a color."""
    return f"\x1b[{color}m{text}\x1b[0m"


def escape_controls(text: str) -> str:
    """Return a text in one line that controls no terminal: what cannot be printed is escaped as Python does."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def choose_style(format_name: Literal["auto", "text", "json"], environment: Mapping[str, str]) -> LineStyle:
    """Return the style for standard output. A terminal has colors unless NO_COLOR is set or it has none."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    if format_name == "json" or (format_name == "auto" and not is_terminal):
        return LineStyle.JSON
    has_color = is_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
    return LineStyle.COLOR if has_color else LineStyle.TEXT


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


class TextFormatter(logging.Formatter):
    """Formats log records for people: time, level unless it is info, message; then the traceback, if there is one."""

    def __init__(self, *, has_color: bool) -> None:
        super().__init__()
        self._has_color = has_color

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        # A message may quote what a client sent; only exceptions have lines of their own.
        message = escape_controls(record.getMessage())
        level = ""
        if record.levelno > logging.INFO:
            name = record.levelname.lower()
            color = Color.YELLOW if record.levelno < logging.ERROR else Color.RED
            level = f"{paint(name, color) if self._has_color else name}: "
        lines = [f"{clock} {level}{message}"]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        # What a worker wrote: its traceback, or the stacks of its threads.
        lines += map(escape_controls, getattr(record, "keys", {}).get("stderr", "").splitlines())
        return "\n".join(lines)


def make_formatter(style: LineStyle) -> logging.Formatter:
    """Return the formatter of log records."""
    return JsonFormatter() if style is LineStyle.JSON else TextFormatter(has_color=style is LineStyle.COLOR)


def start_logging(style: LineStyle, lock: int | None = None) -> LineWriter:
    """Send all log lines to standard output. The caller must call `stop` of the returned writer at the end.

    `lock` is that of an output that several processes share.
    """
    # Python has no sys.stdout if the process was started without one; its descriptor is another file's by now.
    is_open = sys.stdout is not None
    stream = io.FileIO(sys.stdout.fileno(), "w", closefd=False) if is_open else io.FileIO(os.devnull, "w")
    writer = LineWriter(stream if lock is None else SharedOutput(stream, lock))
    writer.setFormatter(make_formatter(style))
    logging.basicConfig(level=logging.INFO, handlers=[writer], force=True)
    # aiohttp's messages repeat what the access log has in more detail.
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    return writer


class LineWriter(logging.Handler):
    """Collects lines in memory; a thread writes them to the stream every 0.05 s, and sleeps while there are none.

    So a blocked standard output blocks neither the event loop nor the end of the process. While it is blocked, full or
    closed, up to 8 MiB of lines are held and the oldest are dropped; a write that failed is tried again every second.
    The stream has no buffer of its own: a part of a line that was written is not written twice, and no lock of a
    buffer is held at the end of the process.

    A thread that is woken for every line (logging's QueueListener) took a quarter of the CPU time of small requests.
    One that looked for lines 20 times a second took 2 ms of CPU per second without any. So a line wakes the thread only
    if none came in the last 0.05 s. A lock taken for every line took as long as the rest of `add_line`: each side
    counts in a number of its own, and only what removes lines takes the lock.

    Garbage collection begins at any allocation, also in here with a lock held, and what it deletes may log. So what
    adds a line never waits for a lock: neither for that of this thread, nor for one whose owner waits for logging's.
    """

    def __init__(self, stream: Output) -> None:
        super().__init__()
        self._stream = stream
        self._lines: deque[str] = deque()
        #: Bytes of access log lines, of log records, and of the lines that were removed, all since the start.
        self._line_bytes = self._record_bytes = self._removed_bytes = 0
        #: Held while lines are removed. What adds lines only tries to take it.
        self._mutex = threading.Lock()
        #: Lines that were taken, without those that were written.
        self._rest = b""
        #: Lines that were never written.
        self.dropped_lines = 0
        self._reported_lines = 0
        self._stopping = threading.Event()
        #: When the last lines are given up, on the monotonic clock.
        self._ends_at = math.inf
        #: The thread sleeps until a line or the end wakes it.
        self._is_asleep = False
        #: Released to wake it. Not an Event, whose `set` waits for a lock of its own.
        self._waking = threading.Lock()
        self._waking.acquire()
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    @property
    def held_bytes(self) -> int:
        """What the lines in memory take."""
        return self._line_bytes + self._record_bytes - self._removed_bytes

    def emit(self, record: logging.LogRecord) -> None:
        """Add the line of a log record. Called by any thread, with the lock that logging has for its handlers."""
        line = self.format(record)
        size = len(line) + _LINE_BYTES
        self._lines.append(line)
        # Calls nothing, after which garbage collection might emit another record within the addition.
        self._record_bytes += size
        if self._is_asleep:
            self._wake()
        self._drop_oldest()

    def add_line(self, line: str) -> None:
        """Add an access log line. Called by one thread: the event loop's.

        It bypasses the logging module: a LogRecord costs more than the line.
        """
        self._lines.append(line)
        self._line_bytes += len(line) + _LINE_BYTES
        if self._is_asleep:
            self._wake()
        if self._line_bytes + self._record_bytes - self._removed_bytes > _MAX_BYTES:
            self._drop_oldest()

    def stop(self) -> None:
        """Write the remaining lines; give up after 2 s if the stream is blocked or full, at once if writing fails.

        The lines that are left are dropped, and counted. A second call does nothing.
        """
        if self._stopping.is_set():
            return
        self._ends_at = time.monotonic() + _LAST_SECONDS
        self._stopping.set()
        self._wake()
        self._thread.join(_LAST_SECONDS)
        with self._mutex:
            self.dropped_lines += len(self._remove(len(self._lines))) + self._rest.count(b"\n")

    def _write(self) -> None:
        is_last = False
        seconds = _INTERVAL_SECONDS
        is_idle = True
        while not is_last:
            if is_idle:
                self._sleep()
            is_last = self._stopping.wait(seconds)
            seconds = _INTERVAL_SECONDS
            is_idle = True
            while rest := self._rest or self._take():
                self._rest = rest
                is_idle = False
                try:
                    written = self._stream.write(rest)
                except OSError:
                    seconds = _RETRY_SECONDS
                    break
                if written is None:
                    # Full; a process that shares the stream made it non-blocking.
                    if is_last and self._wait_for_room():
                        continue
                    break
                self._rest = rest[written:]

    def _wait_for_room(self) -> bool:
        """Wait until the stream takes bytes or has failed; return False if that takes longer than the end may."""
        waiting = select.poll()
        waiting.register(self._stream.fileno(), select.POLLOUT)
        return bool(waiting.poll(max(0.0, self._ends_at - time.monotonic()) * 1000))

    def _sleep(self) -> None:
        """Wait for a line or the end."""
        # If it was released meanwhile.
        self._waking.acquire(blocking=False)
        self._is_asleep = True
        # In this order: a line that was added before is seen here, one that is added later wakes.
        if not self._lines and not self._stopping.is_set():
            self._waking.acquire()
        self._is_asleep = False

    def _wake(self) -> None:
        if self._waking.locked():
            # Another thread may have released it just now.
            with contextlib.suppress(RuntimeError):
                self._waking.release()

    def _take(self) -> bytes:
        """Return the next lines, b"" if there are none; after a gap a line that says so comes first."""
        if not self._lines:
            return b""
        with self._mutex:
            missing = self.dropped_lines - self._reported_lines
            self._reported_lines = self.dropped_lines
            count, held_bytes = len(self._lines), self.held_bytes
            if held_bytes > _BATCH_BYTES:
                count = max(1, count * _BATCH_BYTES // held_bytes)
            lines = self._remove(count)
        self._drop_oldest()
        if missing:
            record = _gap_record(missing)
            self.filter(record)
            lines.insert(0, self.format(record))
        lines.append("")
        return "\n".join(lines).encode(errors="backslashreplace")

    def _drop_oldest(self) -> None:
        """Drop lines, the oldest first, until no more are held than may be, unless lines are being removed already.

        What removes them calls this after it: the lines that were added meanwhile may be too many.
        """
        while self.held_bytes > _MAX_BYTES and self._mutex.acquire(blocking=False):
            try:
                while self.held_bytes > _MAX_BYTES:
                    self._remove(1)
                    self.dropped_lines += 1
            finally:
                self._mutex.release()

    def _remove(self, count: int) -> list[str]:
        """Return the oldest lines, which are held no more. The mutex is held."""
        take = self._lines.popleft
        lines = [take() for _ in range(count)]
        self._removed_bytes += sum(map(len, lines)) + count * _LINE_BYTES
        return lines


def _gap_record(missing: int) -> logging.LogRecord:
    message = "%d log lines before this one were dropped: standard output was blocked, full or closed"
    return logging.LogRecord("gateway", logging.WARNING, "", 0, message, (missing,), None)


def show_time(seconds: float) -> str:
    """Return a Unix time in the form of RFC 3339, in UTC, with milliseconds."""
    return _show_millisecond(int(seconds * 1000))


@functools.lru_cache(maxsize=1)
def _show_millisecond(milliseconds: int) -> str:
    second, rest = divmod(milliseconds, 1000)
    return f"{_show_second(second)}.{rest:03}+00:00"


@functools.lru_cache(maxsize=1)
def _show_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")

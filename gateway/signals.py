"""SIGTERM, SIGINT and SIGHUP, from the first line of the program to its last.

    signal           until `deliver_...`              after it        while Python exits
    ---------------  -------------------------------  --------------  ------------------
    SIGTERM, SIGINT  end the process with status 0    the callback    ignored
    SIGHUP           kept until there is a callback   the callback    ignored

asyncio's own signal handlers exist only while its loop does: before and after, SIGTERM would end the process with
status -15, and SIGINT with a traceback. So do those of the first milliseconds of the process, in which Python itself
starts (about 25 ms; nine tenths of the time until here). Importing this module must stay cheap: what is imported after
it takes 0.4 s.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable

# Not imported from typing, which takes as long as all the rest before the signals are taken over.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from types import FrameType
    from typing import Final

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
#: The first stop signal drains, the second cuts, the third does not wait for anything.
_MAX_STOPS: Final = 2


class Signals:
    """Takes over the signals of this process until it ends. Make one, in the main thread."""

    def __init__(self) -> None:
        self._on_stop: Callable[[], object] = _exit_at_once
        self._on_hangup: Callable[[], object] = self._keep_hangup
        self._stop_count = 0
        self._has_hung_up = False
        self._has_terminal = False
        atexit.register(_ignore_signals)
        for number in (*_STOP_SIGNALS, signal.SIGHUP):
            signal.signal(number, self._handle)

    def deliver_stop(self, loop: AbstractEventLoop, callback: Callable[[], object]) -> None:
        """From now on, run `callback` in the loop for SIGTERM and SIGINT."""
        self._on_stop = _in_loop(loop, callback)

    def deliver_hangup(self, loop: AbstractEventLoop, callback: Callable[[], object]) -> None:
        """From now on, run `callback` in the loop for SIGHUP; now, if there was one before."""
        self._on_hangup = _in_loop(loop, callback)
        if self._has_hung_up:
            self._has_hung_up = False
            self._on_hangup()

    def follow_terminal(self) -> None:
        """From now on, SIGHUP stops like SIGTERM when it comes because the terminal was closed."""
        self._has_terminal = os.isatty(sys.stderr.fileno())

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and not self._is_terminal_closed():
            self._on_hangup()
            return
        self._stop_count += 1
        if self._stop_count > _MAX_STOPS:
            os._exit(1)
        self._on_stop()

    def _is_terminal_closed(self) -> bool:
        return self._has_terminal and not os.isatty(sys.stderr.fileno())

    def _keep_hangup(self) -> None:
        self._has_hung_up = True


def _in_loop(loop: AbstractEventLoop, callback: Callable[[], object]) -> Callable[[], object]:
    def schedule() -> None:
        # The loop is closed after the last exchange: the process is about to exit.
        if not loop.is_closed():
            loop.call_soon_threadsafe(callback)

    return schedule


def _exit_at_once() -> None:
    """End the process: it has opened nothing yet that must be closed."""
    os._exit(0)


def _ignore_signals() -> None:
    # While Python exits it gives handlers back to the system, but leaves what is ignored.
    for number in (*_STOP_SIGNALS, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

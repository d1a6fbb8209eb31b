"""Runs the gateway in a process that can be profiled while it serves; `profile` starts it and reads the result.

At SAMPLE a timer of CPU time interrupts the process and records which function runs: own time, what C functions and
system calls take included, since a signal is handled when the C function it interrupted has returned. At COUNT cProfile
counts calls; its times are not used, since it costs a small function more than a large one. At STOP the result is
written as JSON beside the config.
"""

from __future__ import annotations

import cProfile
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

SAMPLE, COUNT, STOP = signal.SIGRTMIN + 1, signal.SIGRTMIN + 2, signal.SIGRTMIN + 3
#: The kernel rounds it up to its tick.
_INTERVAL_SECONDS = 0.001
#: Other code is charged to what called it.
_CHARGED = ("/gateway/", "/aiohttp/", "/asyncio/", "/selectors.py")

#: As a function: calls of C functions that are made in a file.
C_CALLS = "(C)"

#: File and function.
Place = tuple[str, str]


def locate(frame: FrameType | None) -> Place:
    """Return the innermost function that time is charged to."""
    while frame is not None:
        name = frame.f_code.co_filename
        if any(part in name for part in _CHARGED):
            return name, frame.f_code.co_qualname
        frame = frame.f_back
    return "others", ""


class Recorder:
    """Samples or counts between two signals."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._samples: Counter[Place] = Counter()
        self._calls: cProfile.Profile | None = None

    def install(self) -> None:
        """Take over the signals."""
        signal.signal(signal.SIGPROF, self._take_sample)
        signal.signal(SAMPLE, self._start_sampling)
        signal.signal(COUNT, self._start_counting)
        signal.signal(STOP, self._stop)

    def _take_sample(self, _number: int, frame: FrameType | None) -> None:
        self._samples[locate(frame)] += 1

    def _start_sampling(self, _number: int, _frame: FrameType | None) -> None:
        self._samples.clear()
        signal.setitimer(signal.ITIMER_PROF, _INTERVAL_SECONDS, _INTERVAL_SECONDS)

    def _start_counting(self, _number: int, _frame: FrameType | None) -> None:
        self._calls = cProfile.Profile()
        self._calls.enable()

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        rows = [[*place, count] for place, count in self._samples.items()]
        if self._calls is not None:
            self._calls.disable()
            rows = [[*place, count] for place, count in _count(self._calls).items()]
            self._calls = None
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(rows))
        new.replace(self._path)


def _count(calls: cProfile.Profile) -> Counter[Place]:
    """Return how often each function was called; calls of C functions are those of the function they are called in."""
    found: Counter[Place] = Counter()
    for entry in calls.getstats():
        if not isinstance(entry.code, CodeType):
            continue
        place = (entry.code.co_filename, entry.code.co_qualname)
        found[place] += entry.callcount
        for called in entry.calls or ():
            if not isinstance(called.code, CodeType):
                found[place[0], C_CALLS] += called.callcount
    return found


def main() -> int:
    """Run the gateway with the arguments of its command line, of which the last is the config."""
    Recorder(Path(sys.argv[-1]).with_name("profile.json")).install()
    from gateway.__main__ import main as run_gateway  # noqa: PLC0415 (after the signals, as there)

    return run_gateway()


if __name__ == "__main__":
    sys.exit(main())

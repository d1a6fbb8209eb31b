"""Rows of the API on transfers under way and on those that failed: plain values, which JSON and pickle can carry.

Rows are made in slices: a thousand of them take more time than one exchange may keep the event loop.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, TypedDict

from gateway.errors import Blame
from gateway.observe.waits import Clock

#: Failures kept of each blame in each process: a client that fails all the time must not hide those of an upstream.
FAILURES_KEPT: Final = 50
#: A slice of work, and the pause after it: a request takes several turns of the loop, and should meet few slices.
_SLICE_SECONDS: Final = 0.002
_PAUSE_SECONDS: Final = 0.002
#: Longer numbers would take a while to parse.
_MAX_ID_CHARACTERS: Final = 40


class TransferRow(TypedDict):
    """One exchange from its head to its end; queued and waiting ones included."""

    #: `PID-NUMBER`; the process that has it is in it.
    id: str
    request_id: str
    worker: int
    route: str | None
    upstream: str | None
    endpoint: str | None
    #: Upload until the response head is here, then download; the bytes, length and rates are that direction's.
    direction: str
    client: str
    method: str
    target: str
    #: RFC 3339.
    started: str
    seconds: float
    bytes: int
    #: None where it is not known.
    length: int | None
    #: Over the last 2 s.
    bytes_per_second: int
    average_bytes_per_second: int
    eta_seconds: float | None
    waiting_on: str
    waiting_seconds: float
    #: Seconds by leg so far, without the legs that were never waited on.
    wait_seconds: dict[str, float]
    #: None before the first byte.
    lane: str | None
    #: The parts of a form that have ended.
    parts: int


class FailureRow(TypedDict):
    """One exchange that failed."""

    #: RFC 3339.
    time: str
    request_id: str
    worker: int
    route: str | None
    upstream: str | None
    endpoint: str | None
    client: str
    method: str
    target: str
    status: int
    outcome: str
    blame: str
    code: str | None
    reason: str | None
    seconds: float
    upload_bytes: int
    download_bytes: int
    #: The leg that was waited for most, and how long.
    slowest_leg: str
    slowest_leg_seconds: float


class Slices:
    """Divides the work of one task into slices of a few milliseconds."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + _SLICE_SECONDS

    @property
    def is_over(self) -> bool:
        """Whether the slice under way has taken its time."""
        return self._clock() >= self._end

    async def begin(self) -> None:
        """Let other tasks run, and begin the next slice."""
        await asyncio.sleep(_PAUSE_SECONDS)
        self._end = self._clock() + _SLICE_SECONDS


async def encode_rows(rows: Iterable[TransferRow]) -> str:
    """Return rows as a JSON array, encoded in slices."""
    slices = Slices()
    texts = []
    for row in rows:
        texts.append(json.dumps(row, separators=(",", ":")))
        if slices.is_over:
            await slices.begin()
    return f"[{','.join(texts)}]"


def oldest_first(rows: Iterable[TransferRow]) -> list[TransferRow]:
    """Return rows of any number of processes in the order in which the exchanges began."""
    return sorted(rows, key=lambda row: row["started"])


def newest_first(rows: Iterable[FailureRow]) -> list[FailureRow]:
    """Return failures of any number of processes, the last first."""
    return sorted(rows, key=lambda row: row["time"], reverse=True)


def choose_failures(rows: list[FailureRow], count: int) -> list[FailureRow]:
    """Return this many failures, the last first: clients' only as far as others leave room."""
    of_others = [row for row in rows if row["blame"] != Blame.CLIENT][:count]
    of_clients = [row for row in rows if row["blame"] == Blame.CLIENT][: count - len(of_others)]
    return newest_first([*of_others, *of_clients])


def worker_of(transfer_id: str) -> int | None:
    """Return the process that has a transfer, None if that is no id of one."""
    worker, dash, number = transfer_id.partition("-")
    is_id = bool(dash) and worker.isascii() and worker.isdigit() and number.isascii() and number.isdigit()
    return int(worker) if is_id and len(transfer_id) <= _MAX_ID_CHARACTERS else None


def show_moment(seconds: float) -> str:
    """Return a Unix time in the form of RFC 3339, in UTC, with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")

"""The exchanges under way, as rows of the API, and the last of those that failed.

Nothing is counted for it while bytes move: a row is read from what the exchange counts anyway, and an exchange gets its
number when it is looked at, once a second. So an exchange shorter than that costs nothing.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.downstream.exchange import Exchange
from gateway.errors import Blame
from gateway.observe.live import FAILURES_KEPT, FailureRow, Slices, TransferRow, newest_first, show_moment
from gateway.observe.stats import Direction
from gateway.observe.waits import Clock
from gateway.transfer import Transfer, WholeTransfer

#: Rates are over this many seconds.
_RATE_SECONDS: Final = 2.0
_INTERVAL_SECONDS: Final = 1.0
_MAX_TARGET_CHARACTERS: Final = 512
_MAX_REASON_CHARACTERS: Final = 300


@dataclass(slots=True)
class _Seen:
    """What is remembered of one exchange from look to look."""

    number: int
    #: Unix time.
    started: float
    direction: Direction = Direction.UPLOAD
    #: When, and how many bytes its direction had moved, the oldest first: the first is `_RATE_SECONDS` old, or as old
    #: as the transfer.
    points: deque[tuple[float, int]] = field(default_factory=deque)

    def add_point(self, now: float, exchange: Exchange) -> None:
        """Record how far it is."""
        direction, transfer = _current(exchange)
        if direction is not self.direction or not self.points:
            self.direction = direction
            self.points.clear()
            self.points.append((transfer.started if transfer is not None else now, 0))
        self.points.append((now, transfer.moved_bytes if transfer is not None else 0))
        while len(self.points) > 1 and self.points[1][0] <= now - _RATE_SECONDS:
            self.points.popleft()

    def rate(self, now: float, transfer: Transfer | WholeTransfer) -> float:
        """Return bytes per second, as far back as the first point."""
        since, moved_before = self.points[0]
        return max(0.0, (transfer.moved_bytes - moved_before) / (now - since)) if now > since else 0.0


class LiveTransfers:
    """The exchanges of one process that are under way. `exchanges` are those in flight, by what cancels them."""

    def __init__(
        self,
        exchanges: Mapping[Any, Exchange],
        clock: Clock = time.monotonic,
    ) -> None:
        self._exchanges = exchanges
        self._clock = clock
        self._worker = os.getpid()
        self._seen: dict[Exchange, _Seen] = {}
        self._last_number = 0

    def charge_waits(self) -> None:
        """Charge what every exchange has waited so far: before each scrape."""
        now = self._clock()
        for exchange in self._exchanges.values():
            if _is_under_way(exchange):
                exchange.waits.charge(now)

    async def watch(self) -> None:
        """Look at every exchange once a second, for their rates, until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Record how far every exchange is, in slices."""
        slices = Slices()
        for exchange in list(self._exchanges.values()):
            if _is_under_way(exchange):
                self._see(exchange).add_point(self._clock(), exchange)
            if slices.is_over:
                await slices.begin()
        self._seen = {exchange: seen for exchange, seen in self._seen.items() if _is_under_way(exchange)}

    async def rows(self) -> list[TransferRow]:
        """Return a row for every exchange, made in slices."""
        slices = Slices()
        rows = []
        for exchange in list(self._exchanges.values()):
            # It may have ended in the slices before.
            if _is_under_way(exchange):
                rows.append(self._row(exchange))
            if slices.is_over:
                await slices.begin()
        return rows

    def cancel(self, transfer_id: str) -> Exchange | None:
        """Cancel an exchange for an operator; return it, None if there is none under way with this id."""
        for task, exchange in self._exchanges.items():
            seen = self._seen.get(exchange)
            if seen is not None and self._id(seen) == transfer_id:
                if not _is_under_way(exchange):
                    return None
                if not exchange.is_operator_cancelled:
                    exchange.is_operator_cancelled = True
                    task.cancel()
                return exchange
        return None

    def _id(self, seen: _Seen) -> str:
        return f"{self._worker}-{seen.number}"

    def _see(self, exchange: Exchange) -> _Seen:
        seen = self._seen.get(exchange)
        if seen is None:
            self._last_number += 1
            started = time.time() - (self._clock() - exchange.started)  # noqa: TID251 (the time of day)
            seen = self._seen[exchange] = _Seen(self._last_number, started)
        return seen

    def _row(self, exchange: Exchange) -> TransferRow:
        now = self._clock()
        seen = self._see(exchange)
        direction, transfer = _current(exchange)
        if direction is not seen.direction or not seen.points:
            seen.add_point(now, exchange)
        moved, average, rate = 0, 0.0, 0.0
        if transfer is not None:
            moved = transfer.moved_bytes
            average = moved / max(now - transfer.started, 1e-9)
            rate = seen.rate(now, transfer)
        length = exchange.length if direction is Direction.UPLOAD else transfer.length if transfer is not None else None
        remaining = length - moved if length is not None else None
        waits = exchange.waits
        waits.charge(now)
        return {
            "id": self._id(seen),
            "request_id": exchange.trace.request_id.decode("latin-1"),
            "worker": self._worker,
            "route": exchange.route.name if exchange.route is not None else None,
            "upstream": exchange.upstream or None,
            "endpoint": exchange.endpoint or None,
            "direction": direction.value,
            "client": exchange.client.address,
            "method": exchange.method,
            "target": exchange.raw_target[:_MAX_TARGET_CHARACTERS],
            "started": show_moment(seen.started),
            "seconds": round(now - exchange.started, 3),
            "bytes": moved,
            "length": length,
            "bytes_per_second": round(rate),
            "average_bytes_per_second": round(average),
            # With nothing left to move, what is waited for is not a matter of rate.
            "eta_seconds": round(remaining / rate, 1) if remaining and rate else None,
            "waiting_on": waits.waiting_on.value,
            "waiting_seconds": round(max(0.0, now - waits.waiting_since), 3),
            "wait_seconds": _leg_seconds(exchange),
            "lane": transfer.lane if transfer is not None else None,
            "parts": exchange.part_count,
        }


class RecentFailures:
    """The last exchanges that failed, by blame."""

    def __init__(self) -> None:
        self._worker = os.getpid()
        self._rows: dict[Blame, deque[FailureRow]] = {}
        #: How many there have been, those included that are not kept any more.
        self.count = 0

    def add(self, exchange: Exchange, seconds: float, blame: Blame) -> None:
        """Add an exchange that took this many seconds."""
        rows = self._rows.setdefault(blame, deque(maxlen=FAILURES_KEPT))
        rows.append(_failure_row(exchange, seconds, blame, self._worker))
        self.count += 1

    def rows(self) -> list[FailureRow]:
        """Return them, the last first."""
        return newest_first(row for rows in self._rows.values() for row in rows)


def _is_under_way(exchange: Exchange) -> bool:
    """Return whether it has not ended; the rest of a request body may still be discarded after that."""
    return not exchange.waits.is_over


def _current(exchange: Exchange) -> tuple[Direction, Transfer | WholeTransfer | None]:
    """Return the direction that an exchange is in, and its transfer in that direction."""
    if exchange.response is None:
        return Direction.UPLOAD, exchange.upload
    return Direction.DOWNLOAD, exchange.download


def _leg_seconds(exchange: Exchange) -> dict[str, float]:
    return {leg.value: round(seconds, 3) for leg, seconds in exchange.waits.leg_seconds.items() if seconds}


def _failure_row(exchange: Exchange, seconds: float, blame: Blame, worker: int) -> FailureRow:
    fault, upload, download = exchange.fault, exchange.upload, exchange.download
    legs = exchange.waits.leg_seconds
    slowest = max(legs, key=legs.__getitem__)
    reason = fault.reason or fault.detail if fault is not None else f"the response has the status {exchange.status}"
    return {
        "time": show_moment(time.time()),  # noqa: TID251 (the time of day)
        "request_id": exchange.trace.request_id.decode("latin-1"),
        "worker": worker,
        "route": exchange.route.name if exchange.route is not None else None,
        "upstream": exchange.upstream or None,
        "endpoint": exchange.endpoint or None,
        "client": exchange.client.address,
        "method": exchange.method,
        "target": exchange.raw_target[:_MAX_TARGET_CHARACTERS],
        "status": exchange.status,
        "outcome": exchange.outcome.value,
        "blame": blame.value,
        "code": fault.kind.code if fault is not None else None,
        "reason": reason[:_MAX_REASON_CHARACTERS],
        "seconds": round(seconds, 3),
        "upload_bytes": upload.moved_bytes if upload is not None else 0,
        "download_bytes": download.moved_bytes if download is not None else 0,
        "slowest_leg": slowest.value,
        "slowest_leg_seconds": round(legs[slowest], 3),
    }

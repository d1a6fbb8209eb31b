"""What the API says, made from an OpsView: each document as JSON, built and encoded in slices."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import Any, Final

from gateway import __version__
from gateway.config import Config
from gateway.observe.diagnosis import Diagnosis
from gateway.observe.history import History
from gateway.observe.live import Slices, choose_failures, encode_rows, newest_first, oldest_first, show_moment
from gateway.observe.report import describe_routes, describe_upstreams
from gateway.ops.view import OpsView

#: Transfers in one snapshot: the oldest.
MAX_ROWS: Final = 200
#: Failures in one snapshot.
MAX_FAILURES: Final = 30
#: Failures are what is wrong now for this long.
_FAILURE_SECONDS: Final = 60.0
#: Keys whose values are secrets, wherever they are written: request headers and form fields.
_SECRET_KEY: Final = re.compile(r"auth|token|secret|passw|cookie|credential|api[-_]?key", re.IGNORECASE)
_HIDDEN: Final = "**********"
#: Which gateway a page shows: with a forwarded port, all have the same address.
_HOST: Final = socket.gethostname()


class Snapshots:
    """Makes the documents of the API. It keeps the history: call `record` once a second."""

    def __init__(self, view: OpsView) -> None:
        self._view = view
        self.history = History()

    async def record(self) -> None:
        """Record a point of the history."""
        self.history.record(await self._view.stats())

    async def transfers(self) -> bytes:
        """Return all transfers under way, the oldest first."""
        return b'{"transfers": %b}' % (await encode_rows(oldest_first(await self._view.transfers()))).encode()

    async def transfer(self, transfer_id: str) -> bytes | None:
        """Return one transfer, None if there is none with this id."""
        rows = [row for row in await self._view.transfers() if row["id"] == transfer_id]
        return json.dumps(rows[0]).encode() if rows else None

    async def routes(self) -> bytes:
        """Return all routes."""
        return _encode({"routes": describe_routes(await self._view.stats(), self.history)})

    async def upstreams(self) -> bytes:
        """Return all upstreams."""
        return _encode({"upstreams": describe_upstreams(await self._view.stats(), self.history)})

    async def failures(self) -> bytes:
        """Return the last exchanges that failed, the last first."""
        return _encode({"failures": newest_first(await self._view.failures())})

    async def points(self) -> bytes:
        """Return the history."""
        return (await self.history.encode()).encode()

    async def everything(self) -> bytes:
        """Return what an event carries: what is wrong, transfers, routes, upstreams and failures of now."""
        stats, rows = await self._view.stats(), await self._view.transfers()
        diagnosis, slices = Diagnosis(), Slices()
        for row in rows:
            diagnosis.add(row)
            if slices.is_over:
                await slices.begin()
        # What follows takes a slice of its own, with many routes.
        await slices.begin()
        failures = newest_first(await self._view.failures())
        now = time.time()  # noqa: TID251 (the time of day)
        recently = show_moment(now - _FAILURE_SECONDS)
        upstreams = describe_upstreams(stats, self.history)
        readiness, in_force = self._view.readiness(), self._view.config()
        head = {
            "time": show_moment(now),
            "version": __version__,
            "host": _HOST,
            "config_generation": in_force.generation,
            "is_ready": readiness.is_ready,
            "reasons": readiness.reasons,
            "problems": diagnosis.problems(upstreams, (row for row in failures if row["time"] >= recently)),
            "transfers_total": len(rows),
            "routes": describe_routes(stats, self.history),
            "upstreams": upstreams,
            "failures": choose_failures(failures, MAX_FAILURES),
        }
        encoded = _encode(head)[:-1]
        await slices.begin()
        transfers = await encode_rows(oldest_first(rows)[:MAX_ROWS])
        return b'%b,"transfers":%b}' % (encoded, transfers.encode())

    def config(self) -> bytes:
        """Return the config in force, without secrets. Takes milliseconds for many routes; for a thread."""
        in_force = self._view.config()
        document = in_force.config.show()
        loaded = show_moment(in_force.loaded_at)
        hidden = hide_secrets(document, in_force.config)
        return _encode({"generation": in_force.generation, "loaded": loaded, "config": hidden})


def hide_secrets(value: Any, config: Config, key: str = "") -> Any:
    """Return a part of a config's document without secrets.

    These are the values of environment variables, and those of keys that look like one.
    """
    if isinstance(value, dict):
        return {config.hide(name): hide_secrets(each, config, name) for name, each in value.items()}
    if isinstance(value, list):
        return [hide_secrets(each, config, key) for each in value]
    if isinstance(value, str):
        return _HIDDEN if _SECRET_KEY.search(key) else config.hide(value)
    return value


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()

"""One structured line per exchange, at its end: JSON on standard output, keys that do not change.

`text_line` has the one for people.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii
from typing import Final

from gateway.downstream.exchange import Exchange
from gateway.observe.log import show_time
from gateway.observe.stats import Leg

#: Called with the line of each exchange.
RecordLine = Callable[[str], None]
#: Returns the line of an exchange that took this many seconds.
Describe = Callable[[Exchange, float], str]
_MAX_TARGET_CHARACTERS: Final = 512
#: In the order of `Waits.leg_seconds`.
_LEG_KEYS: Final = tuple(f'"{leg}": ' for leg in Leg)


def describe_exchange(exchange: Exchange, seconds: float) -> str:
    """Return the line of an exchange that took `seconds`: a JSON object whose keys are always the same.

    Written out by hand, since a dict and its encoder cost twice as much, a tenth of a small request: whatever a
    client or a config said is quoted by json's own function, control characters and all, and the rest are numbers and
    the words of our own enumerations.
    """
    fault, trace = exchange.fault, exchange.trace
    route, first = exchange.route, exchange.first_byte_seconds
    upload, download = exchange.upload, exchange.download
    # A list, and keys quoted before: a generator and the keys' own formatting cost 1 us more.
    leg_seconds = exchange.waits.leg_seconds.values()
    waits = ", ".join([f"{key}{spent:.6f}" for key, spent in zip(_LEG_KEYS, leg_seconds, strict=True) if spent])
    return (
        f'{{"time": "{show_time(time.time())}", "level": "info", "event": "exchange", '  # noqa: TID251 (the time of day)
        f'"route": {_quote(route.name if route else None)}, "action": {_quote(route.action_name if route else None)}, '
        f'"method": {_quote(exchange.method)}, "target": {_quote(exchange.raw_target[:_MAX_TARGET_CHARACTERS])}, '
        f'"status": {exchange.status}, "outcome": "{exchange.outcome}", "blame": "{exchange.blame}", '
        f'"code": {_quote(fault.kind.code if fault else None)}, '
        f'"reason": {_quote(fault.reason or fault.detail if fault else None)}, '
        f'"upload": {_quote(upload.outcome if upload else None)}, '
        f'"download": {_quote(download.outcome if download else None)}, '
        f'"upload_bytes": {upload.meter.moved_bytes if upload else 0}, '
        f'"download_bytes": {download.meter.moved_bytes if download else 0}, '
        f'"upload_lane": {_quote(upload.meter.lane if upload else None)}, '
        f'"download_lane": {_quote(download.meter.lane if download else None)}, '
        f'"seconds": {seconds:.6f}, "first_byte_seconds": {"null" if first is None else f"{first:.6f}"}, '
        f'"wait_seconds": {{{waits}}}, "parts": {json.dumps(exchange.parts) if exchange.parts else "null"}, '
        f'"client": {_quote(exchange.client)}, "upstream": {_quote(exchange.upstream or None)}, '
        f'"endpoint": {_quote(exchange.endpoint or None)}, "request_id": {_quote(trace.request_id.decode("latin-1"))}, '
        f'"trace_id": "{trace.traceparent[3:35].decode("latin-1")}"}}'
    )


def _quote(text: str | None) -> str:
    return "null" if text is None else encode_basestring_ascii(text)

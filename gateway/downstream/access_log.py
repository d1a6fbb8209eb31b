"""One structured line per exchange, at its end: JSON on standard output, keys that do not change.

`text_line` has the one for people.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as _quote
from typing import Final

from gateway.downstream.exchange import Exchange
from gateway.errors import Blame, Fault, Outcome
from gateway.observe.log import show_time
from gateway.observe.stats import Leg
from gateway.transfer import Transfer

#: Called with the line of each exchange.
RecordLine = Callable[[str], None]
#: Returns the line of an exchange that took this many seconds.
Describe = Callable[[Exchange, float], str]
_MAX_TARGET_CHARACTERS: Final = 512


class _NoMeter:
    """The meter of a body that was not transferred."""

    outcome: Outcome | None = None
    moved_bytes = 0
    lane: str | None = None


_NO_METER: Final = _NoMeter()
#: In the order of `Waits.leg_seconds`.
_LEG_KEYS: Final = tuple(f'"{leg}": ' for leg in Leg)
_NO_ROUTE_KEYS: Final = '"route": null, "action": null, '
_NO_FAULT_KEYS: Final = '"code": null, "reason": null, '
#: Of an exchange that did not fail.
_COMPLETE_KEYS: Final = f'"outcome": "{Outcome.COMPLETE}", "blame": "{Blame.NONE}", {_NO_FAULT_KEYS}'


def describe_exchange(exchange: Exchange, seconds: float) -> str:
    """Return the line of an exchange that took `seconds`: a JSON object whose keys are always the same.

    Written out by hand, since a dict and its encoder cost twice as much, a tenth of a small request: whatever a
    client or a config said is quoted by json's own function, control characters and all, and the rest are numbers and
    the words of our own enumerations. What only the config decides is quoted once.
    """
    trace, route, first = exchange.trace, exchange.route, exchange.first_byte_seconds
    # A list, and keys quoted before: a generator and the keys' own formatting cost 1 us more.
    leg_seconds = exchange.waits.leg_seconds.values()
    waits = ", ".join([f"{key}{spent:.6f}" for key, spent in zip(_LEG_KEYS, leg_seconds, strict=True) if spent])
    has_failed = exchange.fault is not None or exchange.has_failed_file
    return (
        f'{{"time": "{show_time(time.time())}", "level": "{_level(exchange) if has_failed else "info"}", '  # noqa: TID251 (the time of day)
        f'"event": "exchange", '
        f"{_route_keys(route.name, route.action_name) if route else _NO_ROUTE_KEYS}"
        f'"method": {_quote(exchange.method)}, "target": {_quote(exchange.raw_target[:_MAX_TARGET_CHARACTERS])}, '
        f'"status": {exchange.status}, {_outcome_keys(exchange) if has_failed else _COMPLETE_KEYS}'
        f"{_transfer_keys(exchange.upload, exchange.download)}"
        f'"seconds": {seconds:.6f}, "first_byte_seconds": {"null" if first is None else f"{first:.6f}"}, '
        f'"wait_seconds": {{{waits}}}, "parts": {json.dumps(exchange.parts) if exchange.parts else "null"}, '
        f'"client": {_quote(exchange.client.address)}, {_upstream_keys(exchange.upstream, exchange.endpoint)}'
        f'"request_id": {_quote(trace.request_id.decode("latin-1"))}, '
        f'"trace_id": "{trace.traceparent[3:35].decode("latin-1")}"}}'
    )


def _level(exchange: Exchange) -> str:
    """Return the level of an exchange. What clients do wrong is no warning: strangers would fill the log with them."""
    if exchange.outcome is Outcome.BUG:
        return "error"
    return "warning" if exchange.blame in (Blame.GATEWAY, Blame.UPSTREAM) else "info"


def _outcome_keys(exchange: Exchange) -> str:
    fault = exchange.fault
    return (
        f'"outcome": "{exchange.outcome}", "blame": "{exchange.blame}", '
        f"{_fault_keys(fault) if fault else _NO_FAULT_KEYS}"
    )


def _transfer_keys(upload: Transfer | None, download: Transfer | None) -> str:
    up, down = upload.meter if upload is not None else _NO_METER, download.meter if download is not None else _NO_METER
    return (
        f'"upload": {_word(up.outcome)}, "download": {_word(down.outcome)}, '
        f'"upload_bytes": {up.moved_bytes}, "download_bytes": {down.moved_bytes}, '
        f'"upload_lane": {_word(up.lane)}, "download_lane": {_word(down.lane)}, '
    )


def _fault_keys(fault: Fault) -> str:
    return f'"code": {_quote(fault.kind.code)}, "reason": {_quote(fault.reason or fault.detail)}, '


@functools.lru_cache(maxsize=1024)
def _route_keys(name: str, action: str) -> str:
    return f'"route": {_quote(name)}, "action": {_quote(action)}, '


@functools.lru_cache(maxsize=1024)
def _upstream_keys(name: str, endpoint: str) -> str:
    upstream, endpoint = (_quote(text) if text else "null" for text in (name, endpoint))
    return f'"upstream": {upstream}, "endpoint": {endpoint}, '


@functools.cache
def _word(word: str | None) -> str:
    """Quote one of our own words: there are few."""
    return "null" if word is None else _quote(word)

"""One structured line per exchange, at its end: JSON on standard output, keys that do not change.

`text_line` has the one for people.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring_ascii as _quote
from typing import Final

from gateway.downstream.exchange import Exchange
from gateway.downstream.parts import Part
from gateway.errors import Blame, Fault, Outcome
from gateway.observe.log import show_time
from gateway.observe.stats import Leg

#: Called with the line of each exchange.
RecordLine = Callable[[str], None]
#: Returns the line of an exchange that ended with this status and took this many seconds.
Describe = Callable[[Exchange, int, float], str]
_MAX_TARGET_CHARACTERS: Final = 512
_NO_FAULT_KEYS: Final = '"code": null, "reason": null, '
#: Of an exchange that did not fail.
_COMPLETE_KEYS: Final = f'"outcome": "{Outcome.COMPLETE}", "blame": "{Blame.NONE}", {_NO_FAULT_KEYS}'
#: Formats of seconds, and of a None in their place, for which nothing more is written.
_SECONDS: Final = "%.6f"
_NULL: Final = "null%.0s"
#: The outcome and the lane of a body.
_Ended = tuple[Outcome | None, str | None]
_NO_BODY: Final[_Ended] = (None, None)


def describe_exchange(exchange: Exchange, status: int, seconds: float) -> str:
    """Return the line of an exchange: a JSON object whose keys are always the same.

    Written out by hand, since a dict and its encoder cost four times as much, a tenth of a small request: whatever a
    client or a config said is quoted by json's own function, control characters and all, and the rest are numbers, ids
    and the words of our own enumerations. What most exchanges of a route have in common is written once.
    """
    trace, route, first = exchange.trace, exchange.route, exchange.first_byte_seconds
    up, up_bytes, down, down_bytes = _NO_BODY, 0, _NO_BODY, 0
    if (upload := exchange.upload) is not None:
        up, up_bytes = (upload.outcome, upload.lane), upload.moved_bytes
    if (download := exchange.download) is not None:
        down, down_bytes = (download.outcome, download.lane), download.moved_bytes
    level, result = "info", _COMPLETE_KEYS
    if exchange.fault is not None or exchange.worst_file is not None:
        level, result = _level(exchange), _outcome_keys(exchange)
    before_target, before_bytes, before_times = _common(
        level, route.name if route else None, route.action_name if route else None, exchange.method, up, down
    )
    legs = exchange.waits.leg_seconds
    times = _time_keys(tuple(legs), _NULL if first is None else _SECONDS) % (seconds, first, *legs.values())
    return (
        f'{{"time": "{show_time(time.time())}", {before_target}'  # noqa: TID251 (the time of day)
        f'{_quote(exchange.raw_target[:_MAX_TARGET_CHARACTERS])}, "status": {status}, {result}'
        f'{before_bytes}{up_bytes}, "download_bytes": {down_bytes}, {before_times}{times}'
        f'"parts": {_show_parts(exchange.parts) if exchange.parts else "null"}, '
        f'"client": {_quote(exchange.client.address)}, {_upstream_keys(exchange.upstream, exchange.endpoint)}'
        f'"request_id": "{trace.request_id.decode()}", "trace_id": "{trace.traceparent[3:35].decode()}"}}'
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


def _fault_keys(fault: Fault) -> str:
    return f'"code": {_quote(fault.kind.code)}, "reason": {_quote(fault.reason or fault.detail)}, '


@functools.lru_cache(maxsize=1024)
def _common(  # noqa: PLR0917 (a cache of what they have in common)
    level: str, route: str | None, action: str | None, method: str, up: _Ended, down: _Ended
) -> tuple[str, str, str]:
    """Return what stands before the target, the bytes and the times."""
    (up_outcome, up_lane), (down_outcome, down_lane) = up, down
    return (
        f'"level": "{level}", "event": "exchange", "route": {_word(route)}, "action": {_word(action)}, '
        f'"method": {_quote(method)}, "target": ',
        f'"upload": {_word(up_outcome)}, "download": {_word(down_outcome)}, "upload_bytes": ',
        f'"upload_lane": {_word(up_lane)}, "download_lane": {_word(down_lane)}, ',
    )


@functools.lru_cache(maxsize=1024)
def _time_keys(legs: Sequence[Leg], first_byte: str) -> str:
    """Return the format of the seconds: all, to the first byte, by leg. One format is faster than one for each."""
    waits = ", ".join([f'"{leg}": {_SECONDS}' for leg in legs])
    return f'"seconds": {_SECONDS}, "first_byte_seconds": {first_byte}, "wait_seconds": {{{waits}}}, '


def _show_parts(parts: Sequence[Part]) -> str:
    return f"[{', '.join(map(_show_part, parts))}]"


def _show_part(part: Part) -> str:
    number, kind, size, outcome, facts = part
    if facts:
        return json.dumps({**facts, "part": number, "kind": kind, "size": size, "outcome": outcome})
    return f'{{"part": {number}, "kind": "{kind}", "size": {size}, "outcome": "{outcome}"}}'


@functools.lru_cache(maxsize=1024)
def _upstream_keys(name: str, endpoint: str) -> str:
    return f'"upstream": {_word(name or None)}, "endpoint": {_word(endpoint or None)}, '


def _word(word: str | None) -> str:
    return "null" if word is None else _quote(word)

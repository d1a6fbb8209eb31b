"""The line of an exchange for people: what a terminal shows in place of JSON.

    12:03:55 200 POST /v1/transcribe 3.90 s, up 1.2 GB at 310 MB/s, down 512 B at 131 B/s, mostly upstream_write 3.1 s
    12:03:59 502 GET /v1/models 2.00 s, upstream connect_refused: ...

The last item is the leg that was waited for most, where it was slow enough to notice; the legs are those of the metric
`gateway_wait_seconds_total`. Rates are over the time of the exchange.
"""

from __future__ import annotations

import functools
import time
from typing import Final

from gateway.downstream.access_log import Describe, describe_exchange
from gateway.downstream.exchange import Exchange
from gateway.errors import Blame
from gateway.observe.log import Color, LineStyle, escape_controls, paint
from gateway.observe.units import show_bytes

_MAX_TARGET_CHARACTERS: Final = 120
_MAX_REASON_CHARACTERS: Final = 300
#: Legs that took less are not shown.
_SLOW_SECONDS: Final = 0.1
_SLOW_SHARE: Final = 0.2
_FIRST_SERVER_ERROR: Final = 500
_FIRST_CLIENT_ERROR: Final = 400
_FIRST_REDIRECT: Final = 300


def show_exchange(exchange: Exchange, status: int, seconds: float, *, has_color: bool = False) -> str:
    """Return the line of an exchange that ended with this status and took `seconds`.

    What a client sent is escaped: no control character.
    """
    clock = time.strftime("%H:%M:%S")
    shown_status = paint(str(status), _color(exchange.blame, status)) if has_color else status
    items = [f"{seconds:.2f} s", *_sizes(exchange, seconds), *_slowest(exchange, seconds)]
    target = _escape(exchange.raw_target, _MAX_TARGET_CHARACTERS)
    line = f"{clock} {shown_status} {_escape(exchange.method, 20)} {target} {', '.join(items)}"
    fault = exchange.fault
    if fault is None:
        return line if exchange.blame is Blame.NONE else f"{line}, {exchange.blame} {exchange.outcome}"
    return f"{line}, {fault.blame} {fault.kind.code}: {_escape(fault.reason or fault.detail, _MAX_REASON_CHARACTERS)}"


def choose_describe(style: LineStyle) -> Describe:
    """Return what makes the lines of exchanges in a style."""
    if style is LineStyle.JSON:
        return describe_exchange
    return functools.partial(show_exchange, has_color=style is LineStyle.COLOR)


def _sizes(exchange: Exchange, seconds: float) -> list[str]:
    items = []
    for name, transfer in (("up", exchange.upload), ("down", exchange.download)):
        size = transfer.moved_bytes if transfer is not None else 0
        if size:
            items.append(f"{name} {show_bytes(size)} at {show_bytes(size / max(seconds, 1e-6))}/s")
    return items


def _slowest(exchange: Exchange, seconds: float) -> list[str]:
    leg, spent = max(exchange.waits.leg_seconds.items(), key=lambda item: item[1])
    return [f"mostly {leg} {spent:.1f} s"] if spent >= max(_SLOW_SECONDS, _SLOW_SHARE * seconds) else []


def _color(blame: Blame, status: int) -> Color:
    if blame in (Blame.GATEWAY, Blame.UPSTREAM) or status >= _FIRST_SERVER_ERROR:
        return Color.RED
    if blame is not Blame.NONE or status >= _FIRST_CLIENT_ERROR:
        return Color.YELLOW
    return Color.CYAN if status >= _FIRST_REDIRECT else Color.GREEN


def _escape(text: str, max_characters: int) -> str:
    return escape_controls(text if len(text) <= max_characters else text[: max_characters - 3] + "...")

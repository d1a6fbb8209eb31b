"""Rows and sentences of `gateway top`, from the objects of the API. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

from gateway.observe.log import escape_controls
from gateway.observe.units import show_bytes, show_seconds
from gateway.top.client import Row

HEADINGS: Final = ("route", "client", "request", "progress", "rate", "age", "left", "waits for", "time")
#: What the letters of the last column mean.
LEGEND: Final = "time: c client, u upstream, m model (response awaited), q queue, d disk, f filter"
_LETTERS: Final = {
    "downstream_read": "c",
    "downstream_write": "c",
    "upstream_write": "u",
    "upstream_read": "u",
    "connect": "u",
    "upstream_response": "m",
    "queue": "q",
    "disk_write": "d",
    "disk_read": "d",
    "filter": "f",
}
#: What is waited for, in the words of the live page.
_WORDS: Final = {
    "downstream_read": "client to send",
    "downstream_write": "client to read",
    "upstream_write": "upstream to read",
    "upstream_read": "upstream to send",
    "connect": "connection",
    "upstream_response": "model to respond",
    "queue": "free slot",
    "disk_write": "disk to write",
    "disk_read": "disk to read",
    "filter": "filter",
}
_BAR_WIDTH: Final = 10
_MAX_TARGET_CHARACTERS: Final = 40


class Order(enum.StrEnum):
    """How transfers are sorted, the largest first; each is the key of a transfer."""

    AGE = "seconds"
    RATE = "bytes_per_second"
    BYTES = "bytes"
    WAIT = "waiting_seconds"


def sort_transfers(transfers: Sequence[Row], order: Order, route: str | None) -> list[Row]:
    """Return the transfers of a route (of all with None), the largest first."""
    chosen = (row for row in transfers if route is None or row["route"] == route)
    return sorted(chosen, key=lambda row: (-row[order], row["id"]))


def show_transfer(row: Row) -> tuple[str, ...]:
    """Return the cells of a transfer, as many as HEADINGS."""
    target = row["target"]
    if len(target) > _MAX_TARGET_CHARACTERS:
        target = target[: _MAX_TARGET_CHARACTERS - 3] + "..."
    eta = row["eta_seconds"]
    return (
        row["route"] or "-",
        row["client"],
        escape_controls(f"{row['method']} {target}"),
        _progress(row),
        f"{show_bytes(row['bytes_per_second'])}/s",
        show_seconds(row["seconds"]),
        "" if eta is None else show_seconds(eta),
        _show_wait(row),
        _time_bar(row["wait_seconds"]),
    )


def show_summary(snapshot: Row) -> str:
    """Return what moves now, in one line, and what is wrong, a line each."""
    now = [route["now"] for route in snapshot["routes"]]
    upload, download = (show_bytes(_sum(now, f"{key}_bytes_per_second")) for key in ("upload", "download"))
    requests, errors = (f"{_sum(now, f'{key}_per_second'):.3g}" for key in ("requests", "errors"))
    total = snapshot["transfers_total"]
    first = (
        f"{total} transfer{'s' * (total != 1)}, up {upload}/s, down {download}/s, "
        f"{requests} requests/s, {errors} errors/s"
    )
    wrong = [escape_controls(f"{problem['severity']}: {problem['text']}") for problem in snapshot["problems"]]
    return "\n".join([first, *wrong])


def show_upstream(row: Row) -> str:
    """Return the line of an upstream."""
    slots = f" of {row['slots']} slots" if row["slots"] is not None else ""
    healthy = sum(endpoint["is_up"] for endpoint in row["endpoints"])
    queue = f", queue {row['queue_length']}" if row["queue_length"] else ""
    return (
        f"{row['upstream']}: {healthy} of {len(row['endpoints'])} endpoints up, {row['in_flight']}{slots} in flight"
        f"{queue}, {row['errors']} of {row['requests']} requests failed"
    )


def show_table(snapshot: Row) -> str:
    """Return the summary, the upstreams and the transfers as lines of text, the oldest transfer first."""
    transfers = sort_transfers(snapshot["transfers"], Order.AGE, None)
    cells = [HEADINGS, *map(show_transfer, transfers)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    table = ["", *rows, LEGEND] if transfers else []
    return "\n".join([show_summary(snapshot), *map(show_upstream, snapshot["upstreams"]), *table])


def _sum(rates: list[Row], key: str) -> float:
    return float(sum(rate[key] for rate in rates))


def _show_wait(row: Row) -> str:
    leg: str = row["waiting_on"]
    words = _WORDS.get(leg, leg)
    # A transfer that moves waits for a moment with each chunk.
    return f"{words} {show_seconds(row['waiting_seconds'])}" if row["waiting_seconds"] >= 1 else words


def _progress(row: Row) -> str:
    direction = "up" if row["direction"] == "upload" else "down"
    done, length = row["bytes"], row["length"]
    if not length:
        return f"{direction} {show_bytes(done)}"
    filled = min(_BAR_WIDTH, int(_BAR_WIDTH * done / length))
    return f"{direction} [{'#' * filled:.<{_BAR_WIDTH}}] {show_bytes(done)} of {show_bytes(length)}"


def _time_bar(seconds_by_leg: dict[str, float]) -> str:
    """Return ten letters, each a tenth of the time so far; "" for none."""
    total = sum(seconds_by_leg.values())
    if not total:
        return ""
    bar, border = "", 0.0
    for leg, seconds in sorted(seconds_by_leg.items(), key=lambda item: _LETTERS.get(item[0], "?")):
        # Rounded at the borders, so that there are always ten.
        border += seconds
        bar += _LETTERS.get(leg, "?") * (round(_BAR_WIDTH * border / total) - len(bar))
    return bar

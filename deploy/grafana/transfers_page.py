"""The page of transfers: rates, sizes, and the leg that each second went to."""

from __future__ import annotations

from typing import Final

from deploy.grafana.panels import (
    RATE,
    ROUTE,
    Query,
    Row,
    cells,
    lines,
    page,
    quantile,
    quantiles,
    rate,
    total,
    who_is_slow,
)


def _row(direction: str) -> Row:
    only = f'{ROUTE},direction="{direction}"'
    return Row(
        f"{direction.capitalize()}s",
        [
            cells(
                "Rates",
                "How many transfers had which mean rate, in bytes per second.",
                "Bps",
                f"sum by (le) (increase(gateway_transfer_throughput_bytes_per_second_bucket{{{only}}}{RATE}))",
            ),
            cells(
                "Sizes",
                "How many transfers had which size.",
                "decbytes",
                f"sum by (le) (increase(gateway_transfer_size_bytes_bucket{{{only}}}{RATE}))",
            ),
            lines(
                "Rate of chunks, p10 and p50",
                "Bytes of a chunk over the time for it, waits included. The lower it is, the slower the slower side.",
                "Bps",
                *quantiles("gateway_chunk_throughput_bytes_per_second", only, "route", 0.1, 0.5),
                width=8,
            ),
            lines(
                "Size of chunks, p50",
                "Larger chunks cost less per byte.",
                "decbytes",
                Query(quantile(0.5, "gateway_chunk_size_bytes", only, "route"), "{{route}}"),
                width=8,
            ),
            lines(
                "Ends by outcome",
                "Transfers that end per second.",
                "cps",
                Query(rate("gateway_transfers_total", only, "route, outcome") + " > 0", "{{route}} {{outcome}}"),
                width=8,
            ),
        ],
    )


PAGE: Final = page(
    "transfers",
    "Transfers",
    "Bodies in both directions: how many, how large, how fast, and who was waited for.",
    ["instance", "route"],
    [
        Row(
            "Now",
            [
                who_is_slow(ROUTE),
                lines(
                    "In progress",
                    "Bodies that are being moved.",
                    "short",
                    Query(total("gateway_transfers_in_flight", ROUTE, "route, direction"), "{{route}} {{direction}}"),
                    width=6,
                ),
                lines(
                    "Ends by lane",
                    "How most of the bytes were moved: copy (through aiohttp), direct (from socket to socket), "
                    "splice (in the kernel), express (a small exchange, without tasks of its own).",
                    "cps",
                    Query(rate("gateway_transfers_by_lane_total", ROUTE, "direction, lane"), "{{direction}} {{lane}}"),
                    width=6,
                ),
                cells(
                    "Sizes of parts",
                    "How many parts of forms had which size.",
                    "decbytes",
                    f"sum by (le) (increase(gateway_part_size_bytes_bucket{{{ROUTE}}}{RATE}))",
                    width=24,
                ),
            ],
        ),
        *(_row(direction) for direction in ("upload", "download")),
    ],
)

"""The page of routes."""

from __future__ import annotations

from typing import Final

from deploy.grafana.panels import (
    MOVED,
    ROUTE,
    Query,
    Row,
    lines,
    page,
    quantile,
    rate,
    total,
    who_is_slow,
)

PAGE: Final = page(
    "route",
    "Route",
    "Requests, times, failures, forms and mirrors of routes.",
    ["instance", "route"],
    [
        Row(
            "Requests",
            [
                lines(
                    "Requests",
                    "Exchanges that end per second, by method and status.",
                    "reqps",
                    Query(
                        rate("gateway_requests_total", ROUTE, "route, method, code"),
                        "{{route}} {{method}} {{code}}",
                    ),
                    width=8,
                ),
                lines(
                    "Requests in progress",
                    "From the request head to the end of the exchange.",
                    "short",
                    Query(total("gateway_requests_in_flight", ROUTE, "route"), "{{route}}"),
                    width=8,
                ),
                lines(
                    "Times, p50 and p99",
                    "Seconds from the request head to the response head (first byte) and to the end (duration).",
                    "s",
                    Query(quantile(0.5, "gateway_request_duration_seconds", ROUTE, "route"), "{{route}} duration"),
                    Query(
                        quantile(0.99, "gateway_request_duration_seconds", ROUTE, "route"),
                        "{{route}} duration, p99",
                    ),
                    Query(quantile(0.5, "gateway_time_to_first_byte_seconds", ROUTE, "route"), "{{route}} first byte"),
                    Query(
                        quantile(0.99, "gateway_time_to_first_byte_seconds", ROUTE, "route"),
                        "{{route}} first byte, p99",
                    ),
                    width=8,
                ),
            ],
        ),
        Row(
            "Failures",
            [
                lines(
                    "Failures by blame",
                    "Exchanges per second that failed: with a fault, a failed file of a split, or a 5xx of an "
                    "upstream.",
                    "reqps",
                    Query(rate("gateway_request_failures_total", ROUTE, "route, blame"), "{{route}} {{blame}}"),
                ),
                lines(
                    "Faults by code",
                    "Of exchanges, and of files of a split; docs/errors.md lists the codes.",
                    "reqps",
                    Query(rate("gateway_faults_total", ROUTE, "route, code") + " > 0", "{{route}} {{code}}"),
                ),
            ],
        ),
        Row(
            "Time and bytes",
            [
                who_is_slow(ROUTE),
                lines(
                    "Throughput by upstream",
                    "Bytes per second of bodies; without an upstream the name is empty.",
                    "Bps",
                    Query(rate(MOVED, ROUTE, "route, upstream, direction"), "{{route}} {{upstream}} {{direction}}"),
                ),
            ],
        ),
        Row(
            "Forms and mirrors",
            [
                lines(
                    "Parts of forms",
                    "Parts per second, by kind.",
                    "cps",
                    Query(rate("gateway_parts_total", ROUTE, "route, kind"), "{{route}} {{kind}}"),
                    width=6,
                ),
                lines(
                    "Parts by outcome",
                    "Parts per second; for split, the outcome of the upstream request.",
                    "cps",
                    Query(
                        rate("gateway_part_outcomes_total", ROUTE, "route, outcome") + " > 0",
                        "{{route}} {{outcome}}",
                    ),
                    width=6,
                ),
                lines(
                    "Mirrored requests",
                    "Per second, by outcome; limit: the mirror was too slow and was cut.",
                    "reqps",
                    Query(
                        rate("gateway_mirrored_requests_total", ROUTE, "route, outcome") + " > 0",
                        "{{route}} {{outcome}}",
                    ),
                    width=6,
                ),
                lines(
                    "Mirrored bytes",
                    "Bytes per second, sent and dropped.",
                    "Bps",
                    Query(rate("gateway_mirror_bytes_total", ROUTE, "route, result"), "{{route}} {{result}}"),
                    width=6,
                ),
            ],
        ),
    ],
)

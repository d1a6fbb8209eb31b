"""The page of upstreams: latency, slots, queue, ejections, the service's own time."""

from __future__ import annotations

from typing import Final

from deploy.grafana.panels import (
    RATE,
    UPSTREAM,
    Query,
    Row,
    cells,
    lines,
    page,
    quantiles,
    rate,
    states,
    total,
)

_BY_ENDPOINT: Final = "upstream, endpoint"
PAGE: Final = page(
    "upstream",
    "Upstream",
    "Service time, requests, slots, queue and health of upstreams.",
    ["instance", "upstream"],
    [
        Row(
            "The service",
            [
                lines(
                    "Service time",
                    "Seconds from the end of a request to the response head: the service's own time.",
                    "s",
                    *quantiles("gateway_upstream_response_seconds", UPSTREAM, "upstream", 0.5, 0.9, 0.99),
                ),
                cells(
                    "Service times",
                    "How many responses took how long.",
                    "s",
                    f"sum by (le) (increase(gateway_upstream_response_seconds_bucket{{{UPSTREAM}}}{RATE}))",
                ),
                lines(
                    "Requests by endpoint and code",
                    "Per second: the status of the response or, without one, the code of the fault. Retries and "
                    "mirrored requests are counted, too.",
                    "reqps",
                    Query(
                        rate("gateway_upstream_requests_total", UPSTREAM, f"{_BY_ENDPOINT}, code") + " > 0",
                        "{{upstream}} {{endpoint}} {{code}}",
                    ),
                ),
                lines(
                    "Connecting, p50 and p99",
                    "Seconds to open a connection: name lookup, TCP, TLS. Kept connections are not counted.",
                    "s",
                    *quantiles("gateway_upstream_connect_seconds", UPSTREAM, "upstream", 0.5, 0.99),
                ),
            ],
        ),
        Row(
            "Capacity",
            [
                lines(
                    "Requests in progress and slots",
                    "Requests of each endpoint, and what the upstream as a whole takes at once (none: no limit).",
                    "short",
                    Query(total("gateway_upstream_in_flight", UPSTREAM, _BY_ENDPOINT), "{{upstream}} {{endpoint}}"),
                    Query(total("gateway_upstream_slots", UPSTREAM, "upstream") + " < Inf", "{{upstream}} slots"),
                    width=8,
                ),
                lines(
                    "Queue",
                    "Exchanges that wait for a slot.",
                    "short",
                    Query(total("gateway_upstream_queue_length", UPSTREAM, "upstream"), "{{upstream}}"),
                    width=8,
                ),
                lines(
                    "Seconds in the queue",
                    "Of exchanges that found no free slot; those that gave up are counted, too.",
                    "s",
                    *quantiles("gateway_upstream_queue_seconds", UPSTREAM, "upstream", 0.5, 0.99),
                    width=8,
                ),
            ],
        ),
        Row(
            "Health",
            [
                states(
                    "Endpoints",
                    "Down: its health checks fail, or it is ejected.",
                    Query(
                        f"min by ({_BY_ENDPOINT}) (gateway_upstream_endpoint_up{{{UPSTREAM}}})",
                        "{{upstream}} {{endpoint}}",
                    ),
                ),
                lines(
                    "Ejections",
                    "Per minute: an endpoint got no requests for a while because its requests had failed.",
                    "cpm",
                    Query(
                        f"60 * {rate('gateway_upstream_ejections_total', UPSTREAM, _BY_ENDPOINT)}",
                        "{{upstream}} {{endpoint}}",
                    ),
                ),
                lines(
                    "Retries",
                    "Requests per second sent again or to another endpoint, by reason.",
                    "reqps",
                    Query(
                        rate("gateway_upstream_retries_total", UPSTREAM, "upstream, reason"),
                        "{{upstream}} {{reason}}",
                    ),
                ),
            ],
        ),
    ],
)

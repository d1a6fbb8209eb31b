"""The page that answers: does it work, how much moves, and who is slow."""

from __future__ import annotations

from typing import Final

from deploy.grafana.panels import (
    INSTANCE,
    MOVED,
    RATE,
    Query,
    Row,
    lines,
    number,
    page,
    quantile,
    rate,
    statuses,
    total,
    who_is_slow,
)

_FAILING: Final = f'sum(rate(gateway_request_failures_total{{{INSTANCE},blame=~"upstream|gateway"}}{RATE}))'
_REQUESTS: Final = f"sum(rate(gateway_request_duration_seconds_count{{{INSTANCE}}}{RATE}))"
_IN_USE: Final = total("gateway_upstream_in_flight", INSTANCE, "instance, upstream")
_SLOTS: Final = total("gateway_upstream_slots", INSTANCE, "instance, upstream")

PAGE: Final = page(
    "overview",
    "Overview",
    "Does it work, how much moves, and who is slow.",
    ["instance"],
    [
        Row(
            "Now",
            [
                number(
                    "Alerts firing",
                    "Alerts of deploy/prometheus that fire now; docs/runbook.md says what to do about each.",
                    "short",
                    Query(
                        f'count(ALERTS{{alertname=~"Gateway.+",alertstate="firing",{INSTANCE}}}) or vector(0)', "alerts"
                    ),
                    alarm=1,
                ),
                number(
                    "Gateways up",
                    "Gateways whose ops port responds to Prometheus; red with none.",
                    "short",
                    Query(f'sum(up{{job=~"streaming-gateway.*",{INSTANCE}}})', "up"),
                    alarm=1,
                ),
                number(
                    "Requests",
                    "Exchanges that end per second.",
                    "reqps",
                    Query(_REQUESTS, "requests"),
                ),
                number(
                    "Failures",
                    "Share of the requests that failed because of the gateway or an upstream. Yellow from 1 %, red "
                    "from 5 %, where the alert GatewayUpstreamFailing fires.",
                    "percentunit",
                    Query(f"{_FAILING} / ({_REQUESTS} > 0)", "failed"),
                    warn=0.01,
                    alarm=0.05,
                ),
                number(
                    "Upload",
                    "Bytes per second from clients, counted while they flow.",
                    "Bps",
                    Query(f'sum(rate({MOVED}{{{INSTANCE},direction="upload"}}{RATE}))', "upload"),
                ),
                number(
                    "Download",
                    "Bytes per second to clients, counted while they flow.",
                    "Bps",
                    Query(f'sum(rate({MOVED}{{{INSTANCE},direction="download"}}{RATE}))', "download"),
                ),
                number(
                    "Transfers in progress",
                    "Request and response bodies in progress.",
                    "short",
                    Query(total("gateway_transfers_in_flight", INSTANCE), "transfers"),
                ),
                number(
                    "Endpoints down",
                    "Endpoints that fail their health checks or are ejected.",
                    "short",
                    Query(f"count(gateway_upstream_endpoint_up{{{INSTANCE}}} == 0) or vector(0)", "down"),
                    alarm=1,
                ),
                number(
                    "Waiting for a slot",
                    "Exchanges in the queues of upstreams.",
                    "short",
                    Query(total("gateway_upstream_queue_length", INSTANCE), "waiting"),
                    warn=1,
                    alarm=20,
                ),
                number(
                    "Slots in use",
                    "Of the upstream that has the fewest free, in percent of its max_in_flight; 0 without a limit.",
                    "percentunit",
                    Query(f"max({_IN_USE} / on (instance, upstream) {_SLOTS})", "in use"),
                    warn=0.8,
                    alarm=1,
                ),
                number(
                    "Service time, p99",
                    "Seconds from the end of a request to the response head: the services themselves.",
                    "s",
                    Query(quantile(0.99, "gateway_upstream_response_seconds", INSTANCE, ""), "p99"),
                ),
                number(
                    "Refused reloads",
                    "Config reloads that failed within the range: the config before stayed in force.",
                    "short",
                    Query(
                        f'sum(increase(gateway_config_reloads_total{{{INSTANCE},result="failure"}}[$__range]))',
                        "refused",
                    ),
                    alarm=1,
                ),
            ],
        ),
        Row(
            "What moves, and who is slow",
            [
                lines(
                    "Throughput by route",
                    "Bytes per second of bodies, counted chunk by chunk.",
                    "Bps",
                    Query(rate(MOVED, INSTANCE, "route, direction"), "{{route}} {{direction}}"),
                ),
                who_is_slow(INSTANCE),
                statuses(INSTANCE),
                lines(
                    "Failures by blame",
                    "Exchanges per second that failed, by whose fault it was.",
                    "reqps",
                    Query(rate("gateway_request_failures_total", INSTANCE, "route, blame"), "{{route}} {{blame}}"),
                ),
            ],
        ),
    ],
)

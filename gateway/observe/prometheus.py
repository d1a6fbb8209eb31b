"""The metrics of Stats. Values are read at scrape time, not counted here."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

import aiohttp

from gateway import __version__
from gateway.observe.exposition import OPENMETRICS_TYPE, TEXT_TYPE, Metric, Row, Section, Writer
from gateway.observe.stats import RouteStats, Stats, UpstreamStats

_METRICS: Final = (
    Metric(
        "counter",
        "gateway_requests",
        "Finished exchanges, by response status (499: client closed the connection before it).",
        ("route", "method", "code"),
    ),
    Metric(
        "histogram",
        "gateway_request_duration_seconds",
        "Seconds from the request head to the end of the exchange.",
        ("route",),
    ),
    Metric(
        "histogram",
        "gateway_time_to_first_byte_seconds",
        "Seconds from the request head to the response head.",
        ("route",),
    ),
    Metric("gauge", "gateway_requests_in_flight", "Exchanges in progress.", ("route",)),
    Metric(
        "counter",
        "gateway_request_failures",
        "Exchanges with a fault, a failed file of a split, or an upstream's 5xx, by blame.",
        ("route", "blame"),
    ),
    Metric(
        "counter",
        "gateway_faults",
        "Faults that ended exchanges and files of a split, by code (docs/errors.md).",
        ("route", "code"),
    ),
    Metric(
        "counter",
        "gateway_transfers",
        "Finished transfers (request or response bodies), by outcome.",
        ("route", "direction", "outcome"),
    ),
    Metric(
        "counter",
        "gateway_transfers_by_lane",
        "Finished transfers, by the lane that moved most of their bytes.",
        ("route", "direction", "lane"),
    ),
    Metric("gauge", "gateway_transfers_in_flight", "Transfers in progress.", ("route", "direction")),
    Metric(
        "counter",
        "gateway_transfer_bytes",
        "Bytes of bodies passed on, counted chunk by chunk while they flow.",
        ("route", "upstream", "direction"),
    ),
    Metric("histogram", "gateway_chunk_size_bytes", "Size of each chunk in bytes.", ("route", "direction")),
    Metric(
        "histogram",
        "gateway_chunk_throughput_bytes_per_second",
        "Size of each chunk over the time for it, waits included.",
        ("route", "direction"),
    ),
    Metric(
        "histogram",
        "gateway_transfer_throughput_bytes_per_second",
        "Mean rate of each transfer from its start to its end.",
        ("route", "direction"),
    ),
    Metric("histogram", "gateway_transfer_size_bytes", "Size of each body in bytes.", ("route", "direction")),
    Metric(
        "counter",
        "gateway_wait_seconds",
        "Seconds in which exchanges waited, by the leg they waited for; rises while they wait.",
        ("route", "leg"),
    ),
    Metric("counter", "gateway_parts", "Parts of multipart forms, by kind (file, field).", ("route", "kind")),
    Metric("histogram", "gateway_part_size_bytes", "Size of each part in bytes.", ("route",)),
    Metric(
        "counter",
        "gateway_part_outcomes",
        "Parts of multipart forms, by outcome (for split: of the upstream request).",
        ("route", "outcome"),
    ),
    Metric(
        "counter",
        "gateway_mirrored_requests",
        "Mirrored requests, by outcome (limit: the mirror was too slow and was cut).",
        ("route", "outcome"),
    ),
    Metric(
        "counter", "gateway_mirror_bytes", "Bytes of mirrored bodies, by result (sent, dropped).", ("route", "result")
    ),
    Metric(
        "gauge",
        "gateway_upstream_endpoint_up",
        "1 if the endpoint is healthy, 0 if its health checks fail or it is ejected.",
        ("upstream", "endpoint"),
    ),
    Metric(
        "gauge",
        "gateway_upstream_in_flight",
        "Requests in progress: sent, and the response is not complete.",
        ("upstream", "endpoint"),
    ),
    Metric(
        "counter",
        "gateway_upstream_requests",
        "Requests sent, by status of the response or, without one, by code of the fault.",
        ("upstream", "endpoint", "code"),
    ),
    Metric(
        "counter",
        "gateway_upstream_ejections",
        "Times an endpoint got no requests for a while because its requests had failed.",
        ("upstream", "endpoint"),
    ),
    Metric(
        "histogram",
        "gateway_upstream_response_seconds",
        "Seconds from the end of a request to its response head: the service itself.",
        ("upstream",),
    ),
    Metric(
        "histogram",
        "gateway_upstream_connect_seconds",
        "Seconds to open a connection: name lookup, TCP, TLS; not of connections kept.",
        ("upstream",),
    ),
    Metric(
        "gauge",
        "gateway_upstream_slots",
        "Exchanges that the upstream takes at once (max_in_flight); +Inf: unlimited.",
        ("upstream",),
    ),
    Metric("gauge", "gateway_upstream_queue_length", "Exchanges that wait for a slot of the upstream.", ("upstream",)),
    Metric(
        "histogram",
        "gateway_upstream_queue_seconds",
        "Seconds in the queue, of exchanges that found no free slot.",
        ("upstream",),
    ),
    Metric(
        "counter",
        "gateway_upstream_retries",
        "Requests sent again or to another endpoint, by the reason why the attempt failed.",
        ("upstream", "reason"),
    ),
    Metric(
        "gauge",
        "gateway_connections",
        "Connections of clients, by state (active: an exchange is in progress; idle).",
        ("state",),
    ),
    Metric(
        "counter",
        "gateway_config_reloads",
        "Config reloads, by result (failure: the previous config stays in force).",
        ("result",),
    ),
    Metric(
        "gauge",
        "gateway_config_last_reload_success_timestamp_seconds",
        "Unix time at which the config in force was loaded.",
    ),
    Metric(
        "counter",
        "gateway_log_lines_dropped",
        "Log lines that were never written: standard output was blocked, full or closed.",
    ),
    Metric("gauge", "gateway_workers", "Worker processes that serve; 1 without workers."),
    Metric("counter", "gateway_worker_restarts", "Worker processes that were started in place of one that had died."),
    Metric(
        "gauge",
        "gateway_workers_stale",
        "Workers that did not respond to this scrape within 1 s: their last numbers are shown.",
    ),
    Metric(
        "gauge",
        "gateway_build_info",
        "Always 1; the labels are the versions of the gateway, aiohttp and Python.",
        ("version", "aiohttp", "python"),
    ),
)
#: Every metric by its name, in the order of the text; the table of docs/metrics.md is generated from it.
METRICS: Final = {metric.name: metric for metric in _METRICS}


class Exposition:
    """Makes the text of /metrics, again and again. Used by one thread at a time."""

    def __init__(self) -> None:
        self._writer = Writer(_METRICS)

    def render(
        self, stats: Stats, accept: str, processes: Iterable[Row], *, are_routes_fixed: bool = False
    ) -> tuple[bytes, str]:
        """Return the text and its Content-Type: OpenMetrics if `accept` lists it, Prometheus text otherwise.

        `processes` are the metrics of the process, or of several. `are_routes_fixed`: the numbers of a RouteStats never
        change.
        """
        is_openmetrics = "application/openmetrics-text" in accept
        sections = chain(collect(stats, are_routes_fixed=are_routes_fixed), [Section("processes", processes)])
        text = self._writer.write(sections, is_openmetrics=is_openmetrics)
        return text, OPENMETRICS_TYPE if is_openmetrics else TEXT_TYPE


def collect(stats: Stats, *, are_routes_fixed: bool = False) -> Iterator[Section]:
    """Yield all series with their current values, but those of the process. May be called from any thread."""
    for name, route in list(stats.routes.items()):
        yield Section(("route", name), _rows_of_route(route), route if are_routes_fixed else None)
    for name, upstream in list(stats.upstreams.items()):
        yield Section(("upstream", name), _rows_of_upstream(upstream))
    yield Section("gateway", _rows_of_gateway(stats))


def _rows_of_route(route: RouteStats) -> Iterator[Row]:
    label = (route.route,)
    yield METRICS["gateway_requests"], label, route.requests
    yield METRICS["gateway_request_duration_seconds"], label, route.durations
    yield METRICS["gateway_time_to_first_byte_seconds"], label, route.first_bytes
    yield METRICS["gateway_requests_in_flight"], label, route.in_flight
    yield METRICS["gateway_request_failures"], label, route.failures
    yield METRICS["gateway_faults"], label, route.faults
    for direction, stats in route.transfers.items():
        labels = (route.route, direction.value)
        yield METRICS["gateway_transfers"], labels, stats.outcomes
        yield METRICS["gateway_transfers_by_lane"], labels, stats.lanes
        yield METRICS["gateway_transfers_in_flight"], labels, stats.in_flight
        for upstream, size in list(stats.moved.items()):
            yield METRICS["gateway_transfer_bytes"], (route.route, upstream, direction.value), size
        yield METRICS["gateway_chunk_size_bytes"], labels, stats.chunk_sizes
        yield METRICS["gateway_chunk_throughput_bytes_per_second"], labels, stats.chunk_rates
        yield METRICS["gateway_transfer_throughput_bytes_per_second"], labels, stats.rates
        yield METRICS["gateway_transfer_size_bytes"], labels, stats.sizes
    yield METRICS["gateway_wait_seconds"], label, route.waits
    yield METRICS["gateway_parts"], label, route.parts
    yield METRICS["gateway_part_size_bytes"], label, route.part_sizes
    yield METRICS["gateway_part_outcomes"], label, route.part_outcomes
    yield METRICS["gateway_mirrored_requests"], label, route.mirrors
    yield METRICS["gateway_mirror_bytes"], label, route.mirror_bytes


def _rows_of_upstream(upstream: UpstreamStats) -> Iterator[Row]:
    for url, endpoint in list(upstream.endpoints.items()):
        labels = (upstream.upstream, url)
        yield METRICS["gateway_upstream_endpoint_up"], labels, int(endpoint.is_up)
        yield METRICS["gateway_upstream_in_flight"], labels, endpoint.in_flight
        yield METRICS["gateway_upstream_requests"], labels, endpoint.requests
        yield METRICS["gateway_upstream_ejections"], labels, endpoint.ejections
    label = (upstream.upstream,)
    yield METRICS["gateway_upstream_response_seconds"], label, upstream.response_seconds
    yield METRICS["gateway_upstream_connect_seconds"], label, upstream.connect_seconds
    yield METRICS["gateway_upstream_slots"], label, upstream.slots
    yield METRICS["gateway_upstream_queue_length"], label, upstream.queue_length
    yield METRICS["gateway_upstream_queue_seconds"], label, upstream.queue_seconds
    yield METRICS["gateway_upstream_retries"], label, upstream.retries


def _rows_of_gateway(stats: Stats) -> Iterator[Row]:
    yield METRICS["gateway_connections"], (), stats.connections
    yield METRICS["gateway_config_reloads"], (), stats.reloads
    yield METRICS["gateway_config_last_reload_success_timestamp_seconds"], (), stats.configured_at
    yield METRICS["gateway_log_lines_dropped"], (), stats.dropped_log_lines()
    yield METRICS["gateway_workers"], (), stats.workers
    yield METRICS["gateway_worker_restarts"], (), stats.worker_restarts
    yield METRICS["gateway_workers_stale"], (), stats.stale_workers
    yield METRICS["gateway_build_info"], (__version__, aiohttp.__version__, platform.python_version()), 1

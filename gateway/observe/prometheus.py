"""The Prometheus exposition of Stats, in a registry of its own. Values are read at scrape time, not counted here."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from typing import Final

import aiohttp
from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics

from gateway import __version__
from gateway.observe.stats import Histogram, RouteStats, Stats

#: The help text of every metric; the table of docs/metrics.md is generated from it.
HELP: Final = {
    "gateway_requests": "Finished exchanges, by response status (499: client closed the connection before it).",
    "gateway_request_duration_seconds": "Seconds from the request head to the end of the exchange.",
    "gateway_time_to_first_byte_seconds": "Seconds from the request head to the response head.",
    "gateway_requests_in_flight": "Exchanges in progress.",
    "gateway_transfers": "Finished transfers (request or response bodies), by outcome.",
    "gateway_transfers_by_lane": "Finished transfers, by the lane that moved most of their bytes.",
    "gateway_transfers_in_flight": "Transfers in progress.",
    "gateway_transfer_bytes": "Bytes of bodies passed on, counted chunk by chunk while they flow.",
    "gateway_chunk_size_bytes": "Size of each chunk in bytes.",
    "gateway_chunk_throughput_bytes_per_second": "Size of each chunk over the time for it, waits included.",
    "gateway_transfer_throughput_bytes_per_second": "Mean rate of each transfer from its start to its end.",
    "gateway_transfer_size_bytes": "Size of each body in bytes.",
    "gateway_wait_seconds": "Seconds in which exchanges waited, by the leg they waited for; rises while they wait.",
    "gateway_parts": "Parts of multipart forms, by kind (file, field).",
    "gateway_part_size_bytes": "Size of each part in bytes.",
    "gateway_part_outcomes": "Parts of multipart forms, by outcome (for split: of the upstream request).",
    "gateway_mirrored_requests": "Mirrored requests, by outcome (limit: the mirror was too slow and was cut).",
    "gateway_mirror_bytes": "Bytes of mirrored bodies, by result (sent, dropped).",
    "gateway_upstream_endpoint_up": "1 if the endpoint is healthy, 0 if its health checks fail or it is ejected.",
    "gateway_upstream_queue_length": "Exchanges that wait for a slot of the upstream.",
    "gateway_upstream_ejections": "Times an endpoint got no requests for a while because its requests had failed.",
    "gateway_upstream_retries": "Requests sent again or to another endpoint, by the reason why the attempt failed.",
    "gateway_config_reloads": "Config reloads, by result (failure: the previous config stays in force).",
    "gateway_config_last_reload_success_timestamp_seconds": "Unix time at which the config in force was loaded.",
    "gateway_log_lines_dropped": "Log lines that were never written: standard output was blocked, full or closed.",
    "gateway_build": "Always 1; the labels are the versions of the gateway, aiohttp and Python.",
}


class StatsCollector:
    """The prometheus_client collector of one Stats."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families with their current values. May be called from any thread."""
        routes = list(self._stats.routes.values())
        yield from _requests(routes)
        yield from _transfers(routes)
        yield from _waits_and_parts(routes)
        yield from _mirrors(routes)
        yield from self._upstreams()
        yield from self._config()
        build = GaugeMetricFamily("gateway_build_info", HELP["gateway_build"], labels=("version", "aiohttp", "python"))
        build.add_metric((__version__, aiohttp.__version__, platform.python_version()), 1)
        yield build

    def _config(self) -> Iterator[Metric]:
        reloads = _counter("gateway_config_reloads", "result")
        for result, count in list(self._stats.reloads.items()):
            reloads.add_metric((result,), count)
        loaded = _gauge("gateway_config_last_reload_success_timestamp_seconds")
        loaded.add_metric((), self._stats.configured_at)
        dropped = _counter("gateway_log_lines_dropped")
        dropped.add_metric((), self._stats.dropped_log_lines())
        yield from (reloads, loaded, dropped)

    def _upstreams(self) -> Iterator[Metric]:
        up = _gauge("gateway_upstream_endpoint_up", "upstream", "endpoint")
        queue = _gauge("gateway_upstream_queue_length", "upstream")
        ejections = _counter("gateway_upstream_ejections", "upstream", "endpoint")
        retries = _counter("gateway_upstream_retries", "upstream", "reason")
        for upstream in list(self._stats.upstreams.values()):
            for endpoint, is_up in list(upstream.endpoints_up.items()):
                up.add_metric((upstream.upstream, endpoint), float(is_up))
            for endpoint, count in list(upstream.ejections.items()):
                ejections.add_metric((upstream.upstream, endpoint), count)
            queue.add_metric((upstream.upstream,), upstream.queue_length)
            for reason, count in list(upstream.retries.items()):
                retries.add_metric((upstream.upstream, reason), count)
        yield from (up, queue, ejections, retries)


def make_registry(stats: Stats) -> CollectorRegistry:
    """Return a registry with the metrics of one gateway."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatsCollector(stats))
    return registry


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return the exposition and its Content-Type: OpenMetrics if `accept` lists it, Prometheus text otherwise."""
    if "application/openmetrics-text" in accept:
        # prometheus-client 0.26 has no types for this function.
        return openmetrics.generate_latest(registry), openmetrics.CONTENT_TYPE_LATEST  # type: ignore[no-untyped-call]
    return exposition.generate_latest(registry), exposition.CONTENT_TYPE_LATEST


def _requests(routes: Iterable[RouteStats]) -> Iterator[Metric]:
    requests = _counter("gateway_requests", "route", "method", "code")
    durations = _histogram("gateway_request_duration_seconds", "route")
    first_bytes = _histogram("gateway_time_to_first_byte_seconds", "route")
    in_flight = _gauge("gateway_requests_in_flight", "route")
    for route in routes:
        for (method, status), count in list(route.requests.items()):
            requests.add_metric((route.route, method, str(status)), count)
        _add(durations, (route.route,), route.durations)
        _add(first_bytes, (route.route,), route.first_bytes)
        in_flight.add_metric((route.route,), route.in_flight)
    yield from (requests, durations, first_bytes, in_flight)


def _transfers(routes: Iterable[RouteStats]) -> Iterator[Metric]:
    ended = _counter("gateway_transfers", "route", "direction", "outcome")
    lanes = _counter("gateway_transfers_by_lane", "route", "direction", "lane")
    in_flight = _gauge("gateway_transfers_in_flight", "route", "direction")
    moved = _counter("gateway_transfer_bytes", "route", "upstream", "direction")
    chunks = _histogram("gateway_chunk_size_bytes", "route", "direction")
    chunk_rates = _histogram("gateway_chunk_throughput_bytes_per_second", "route", "direction")
    rates = _histogram("gateway_transfer_throughput_bytes_per_second", "route", "direction")
    sizes = _histogram("gateway_transfer_size_bytes", "route", "direction")
    for route in routes:
        for direction, stats in route.transfers.items():
            labels = (route.route, direction.value)
            for outcome, count in list(stats.outcomes.items()):
                ended.add_metric((*labels, outcome.value), count)
            for lane, count in list(stats.lanes.items()):
                lanes.add_metric((*labels, lane), count)
            in_flight.add_metric(labels, stats.in_flight)
            for upstream, size in list(stats.moved.items()):
                moved.add_metric((route.route, upstream, direction.value), size)
            _add(chunks, labels, stats.chunk_sizes)
            _add(chunk_rates, labels, stats.chunk_rates)
            _add(rates, labels, stats.rates)
            _add(sizes, labels, stats.sizes)
    yield from (ended, lanes, in_flight, moved, chunks, chunk_rates, rates, sizes)


def _waits_and_parts(routes: Iterable[RouteStats]) -> Iterator[Metric]:
    waits = _counter("gateway_wait_seconds", "route", "leg")
    parts = _counter("gateway_parts", "route", "kind")
    sizes = _histogram("gateway_part_size_bytes", "route")
    outcomes = _counter("gateway_part_outcomes", "route", "outcome")
    for route in routes:
        for leg, seconds in route.waits.items():
            waits.add_metric((route.route, leg.value), seconds)
        for kind, count in list(route.parts.items()):
            parts.add_metric((route.route, kind), count)
        for outcome, count in list(route.part_outcomes.items()):
            outcomes.add_metric((route.route, outcome.value), count)
        _add(sizes, (route.route,), route.part_sizes)
    yield from (waits, parts, sizes, outcomes)


def _mirrors(routes: Iterable[RouteStats]) -> Iterator[Metric]:
    ended = _counter("gateway_mirrored_requests", "route", "outcome")
    moved = _counter("gateway_mirror_bytes", "route", "result")
    for route in routes:
        for outcome, count in list(route.mirrors.items()):
            ended.add_metric((route.route, outcome.value), count)
        for result, count in list(route.mirror_bytes.items()):
            moved.add_metric((route.route, result), count)
    yield from (ended, moved)


def _counter(name: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, HELP[name], labels=labels)


def _gauge(name: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, HELP[name], labels=labels)


def _histogram(name: str, *labels: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, HELP[name], labels=labels)


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    buckets: list[tuple[str, float]] = []
    running = 0
    for bound, count in zip((*histogram.bounds, float("inf")), list(histogram.counts), strict=True):
        running += count
        buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), running))
    family.add_metric(labels, buckets, histogram.total)

"""The metrics of Stats. Values are read at scrape time, not counted here."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

import aiohttp

from gateway import __version__
from gateway.observe.exposition import OPENMETRICS_TYPE, TEXT_TYPE, Family, Writer
from gateway.observe.stats import RouteStats, Stats, UpstreamStats

#: The help text of every metric; the table of docs/metrics.md is generated from it.
HELP: Final = {
    "gateway_requests": "Finished exchanges, by response status (499: client closed the connection before it).",
    "gateway_request_duration_seconds": "Seconds from the request head to the end of the exchange.",
    "gateway_time_to_first_byte_seconds": "Seconds from the request head to the response head.",
    "gateway_requests_in_flight": "Exchanges in progress.",
    "gateway_request_failures": "Exchanges with a fault, a failed file of a split, or an upstream's 5xx, by blame.",
    "gateway_faults": "Faults that ended exchanges and files of a split, by code (docs/errors.md).",
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
    "gateway_upstream_requests": "Requests sent, by status of the response or, without one, by code of the fault.",
    "gateway_upstream_in_flight": "Requests in progress: sent, and the response is not complete.",
    "gateway_upstream_response_seconds": "Seconds from the end of a request to its response head: the service itself.",
    "gateway_upstream_connect_seconds": "Seconds to open a connection: name lookup, TCP, TLS; not of connections kept.",
    "gateway_upstream_slots": "Exchanges that the upstream takes at once (max_in_flight); +Inf: unlimited.",
    "gateway_upstream_queue_length": "Exchanges that wait for a slot of the upstream.",
    "gateway_upstream_queue_seconds": "Seconds in the queue, of exchanges that found no free slot.",
    "gateway_upstream_ejections": "Times an endpoint got no requests for a while because its requests had failed.",
    "gateway_upstream_retries": "Requests sent again or to another endpoint, by the reason why the attempt failed.",
    "gateway_connections": "Connections of clients, by state (active: an exchange is in progress; idle).",
    "gateway_config_reloads": "Config reloads, by result (failure: the previous config stays in force).",
    "gateway_config_last_reload_success_timestamp_seconds": "Unix time at which the config in force was loaded.",
    "gateway_log_lines_dropped": "Log lines that were never written: standard output was blocked, full or closed.",
    "gateway_workers": "Worker processes that serve; 1 without workers.",
    "gateway_worker_restarts": "Worker processes that were started in place of one that had died.",
    "gateway_workers_stale": "Workers that did not respond to this scrape within 1 s: their last numbers are shown.",
    "gateway_build": "Always 1; the labels are the versions of the gateway, aiohttp and Python.",
}


class Exposition:
    """Makes the text of /metrics, again and again. Used by one thread at a time."""

    def __init__(self) -> None:
        self._writer = Writer()

    def render(self, stats: Stats, accept: str, processes: Iterable[Family]) -> tuple[bytes, str]:
        """Return the text and its Content-Type: OpenMetrics if `accept` lists it, Prometheus text otherwise.

        `processes` are the metrics of the process, or of several.
        """
        is_openmetrics = "application/openmetrics-text" in accept
        text = self._writer.write(chain(collect(stats), processes), is_openmetrics=is_openmetrics)
        return text, OPENMETRICS_TYPE if is_openmetrics else TEXT_TYPE


def collect(stats: Stats) -> Iterator[Family]:
    """Yield all metrics with their current values. May be called from any thread."""
    routes = list(stats.routes.values())
    yield from _requests(routes)
    yield from _transfers(routes)
    yield from _waits_and_parts(routes)
    yield from _mirrors(routes)
    yield from _upstreams(stats)
    yield from _process_wide(stats)
    build = Family("gauge", "gateway_build_info", HELP["gateway_build"], ("version", "aiohttp", "python"))
    build.add((__version__, aiohttp.__version__, platform.python_version()), 1)
    yield build


def _requests(routes: Iterable[RouteStats]) -> Iterator[Family]:
    requests = _counter("gateway_requests", "route", "method", "code")
    durations = _histogram("gateway_request_duration_seconds", "route")
    first_bytes = _histogram("gateway_time_to_first_byte_seconds", "route")
    in_flight = _gauge("gateway_requests_in_flight", "route")
    failures = _counter("gateway_request_failures", "route", "blame")
    faults = _counter("gateway_faults", "route", "code")
    for route in routes:
        requests.add((route.route,), route.requests)
        durations.add((route.route,), route.durations)
        first_bytes.add((route.route,), route.first_bytes)
        in_flight.add((route.route,), route.in_flight)
        failures.add((route.route,), route.failures)
        faults.add((route.route,), route.faults)
    yield from (requests, durations, first_bytes, in_flight, failures, faults)


def _transfers(routes: Iterable[RouteStats]) -> Iterator[Family]:
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
            ended.add(labels, stats.outcomes)
            lanes.add(labels, stats.lanes)
            in_flight.add(labels, stats.in_flight)
            for upstream, size in list(stats.moved.items()):
                moved.add((route.route, upstream, direction.value), size)
            chunks.add(labels, stats.chunk_sizes)
            chunk_rates.add(labels, stats.chunk_rates)
            rates.add(labels, stats.rates)
            sizes.add(labels, stats.sizes)
    yield from (ended, lanes, in_flight, moved, chunks, chunk_rates, rates, sizes)


def _waits_and_parts(routes: Iterable[RouteStats]) -> Iterator[Family]:
    waits = _counter("gateway_wait_seconds", "route", "leg")
    parts = _counter("gateway_parts", "route", "kind")
    sizes = _histogram("gateway_part_size_bytes", "route")
    outcomes = _counter("gateway_part_outcomes", "route", "outcome")
    for route in routes:
        waits.add((route.route,), route.waits)
        parts.add((route.route,), route.parts)
        outcomes.add((route.route,), route.part_outcomes)
        sizes.add((route.route,), route.part_sizes)
    yield from (waits, parts, sizes, outcomes)


def _mirrors(routes: Iterable[RouteStats]) -> Iterator[Family]:
    ended = _counter("gateway_mirrored_requests", "route", "outcome")
    moved = _counter("gateway_mirror_bytes", "route", "result")
    for route in routes:
        ended.add((route.route,), route.mirrors)
        moved.add((route.route,), route.mirror_bytes)
    yield from (ended, moved)


def _upstreams(stats: Stats) -> Iterator[Family]:
    upstreams = list(stats.upstreams.values())
    yield from _endpoints(upstreams)
    responses = _histogram("gateway_upstream_response_seconds", "upstream")
    connects = _histogram("gateway_upstream_connect_seconds", "upstream")
    slots = _gauge("gateway_upstream_slots", "upstream")
    queue = _gauge("gateway_upstream_queue_length", "upstream")
    queued = _histogram("gateway_upstream_queue_seconds", "upstream")
    retries = _counter("gateway_upstream_retries", "upstream", "reason")
    for upstream in upstreams:
        label = (upstream.upstream,)
        responses.add(label, upstream.response_seconds)
        connects.add(label, upstream.connect_seconds)
        slots.add(label, upstream.slots)
        queue.add(label, upstream.queue_length)
        queued.add(label, upstream.queue_seconds)
        retries.add(label, upstream.retries)
    yield from (responses, connects, slots, queue, queued, retries)


def _endpoints(upstreams: Iterable[UpstreamStats]) -> Iterator[Family]:
    labels = ("upstream", "endpoint")
    up = _gauge("gateway_upstream_endpoint_up", *labels)
    in_flight = _gauge("gateway_upstream_in_flight", *labels)
    requests = _counter("gateway_upstream_requests", *labels, "code")
    ejections = _counter("gateway_upstream_ejections", *labels)
    for upstream in upstreams:
        for url, endpoint in list(upstream.endpoints.items()):
            values = (upstream.upstream, url)
            up.add(values, int(endpoint.is_up))
            in_flight.add(values, endpoint.in_flight)
            ejections.add(values, endpoint.ejections)
            requests.add(values, endpoint.requests)
    yield from (up, in_flight, requests, ejections)


def _process_wide(stats: Stats) -> Iterator[Family]:
    connections = _gauge("gateway_connections", "state")
    connections.add((), stats.connections)
    reloads = _counter("gateway_config_reloads", "result")
    reloads.add((), stats.reloads)
    loaded = _gauge("gateway_config_last_reload_success_timestamp_seconds")
    loaded.add((), stats.configured_at)
    dropped = _counter("gateway_log_lines_dropped")
    dropped.add((), stats.dropped_log_lines())
    workers = _gauge("gateway_workers")
    workers.add((), stats.workers)
    restarts = _counter("gateway_worker_restarts")
    restarts.add((), stats.worker_restarts)
    stale = _gauge("gateway_workers_stale")
    stale.add((), stats.stale_workers)
    yield from (connections, reloads, loaded, dropped, workers, restarts, stale)


def _counter(name: str, *labels: str) -> Family:
    return Family("counter", name, HELP[name], labels)


def _gauge(name: str, *labels: str) -> Family:
    return Family("gauge", name, HELP[name], labels)


def _histogram(name: str, *labels: str) -> Family:
    return Family("histogram", name, HELP[name], labels)

"""The numbers of Stats in a form that is cheap to send and to add: one list of numbers for each record.

A record is what begins and ends together: a route, the bytes of a route for one upstream, an upstream, an endpoint, the
process. `_fields_of_route` and those below name the fields in the order of the numbers, once for both ways:

    Stats --take--> records --compare--> Changes --pack--> bytes --unpack--> Changes --`merge`--> records
    records --restore_route, ...--> RouteStats, ...

Sent and added as objects, the numbers of 50 routes took a worker 3 ms and each scrape 9 ms per worker. As records they
take 1 and 2, and only those that have changed are sent, added and restored: in most seconds most routes have no
request.

Fractions are rounded down: sums of them are exact then, in any order. The end of a worker changes the order, and a
counter that falls by a rounding error is a restart to Prometheus, which then adds the whole counter again. Seconds are
rounded to 61 us, which is exact up to 2**39 s; rates and sizes to whole numbers.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import add, gt
from typing import Any, Final

from gateway.observe.stats import EndpointStats, Histogram, RouteStats, Stats, UpstreamStats

#: Of a second. Multiples of a power of two have no rounding error.
_TICKS: Final = 2**14
#: What a record is of: its kind and names.
Subject = tuple[str, ...]


@dataclass(slots=True)
class Record:
    """The numbers of one subject: gauges, then counters and histograms, then the counters that have labels."""

    #: Which of the same name: another one if it was created anew. That is known of those above 0 only.
    number: int
    gauge_count: int
    numbers: list[float]
    #: The labels of the last of `numbers`, for each set of counters.
    labels: tuple[tuple[Hashable, ...], ...] = ()

    def add(self, other: Record) -> None:
        """Add the numbers of another record of the same subject."""
        if self.labels != other.labels:
            pairs = zip(self.labels, other.labels, strict=True)
            labels = tuple(tuple(dict.fromkeys(own + others)) for own, others in pairs)
            self.numbers, self.labels = self._with_labels(labels), labels
        if any(other.numbers):
            self.numbers = list(map(add, self.numbers, other._with_labels(self.labels)))

    def copy(self) -> Record:
        """Return a record to which others can be added."""
        return Record(self.number, self.gauge_count, self.numbers, self.labels)

    def without_gauges(self) -> Record:
        """Return what remains when it has ended."""
        numbers = [*[0] * self.gauge_count, *self.numbers[self.gauge_count :]]
        return Record(self.number, self.gauge_count, numbers, self.labels)

    def is_continued_by(self, later: Record) -> bool:
        """Return whether a later record of the same worker counts on from this one."""
        if later.number != self.number or self.number > 0:
            return later.number == self.number
        # One that was created anew has counted less.
        return not any(map(gt, self.numbers[self.gauge_count :], later._with_labels(self.labels)[self.gauge_count :]))

    def _with_labels(self, labels: tuple[tuple[Hashable, ...], ...]) -> list[float]:
        """Return the numbers with other labels, 0 for those that are new."""
        if labels == self.labels:
            return self.numbers
        start = len(self.numbers) - sum(map(len, self.labels))
        numbers = self.numbers[:start]
        for own, others in zip(self.labels, labels, strict=True):
            values = self.numbers[start : start + len(own)]
            start += len(own)
            if own != others:
                known = dict(zip(own, values, strict=True))
                values = [known.get(label, 0) for label in others]
            numbers += values
        return numbers


#: By subject.
Records = dict[Subject, Record]


def take(stats: Stats) -> Records:
    """Return the numbers of this moment."""
    process: list[float] = [*stats.connections.values(), stats.dropped_log_lines()]
    records: Records = {("process",): Record(0, len(stats.connections), process)}
    for name, route in stats.routes.items():
        records["route", name] = _read(_fields_of_route(route), route.number)
        upload, download = (transfer.moved for transfer in route.transfers.values())
        for upstream, moved in upload.items():
            # A route may get an upstream again that it had before: its number does not change with that.
            records["moved", name, upstream] = Record(-route.number, 0, [moved, download[upstream]])
    for name, upstream_stats in stats.upstreams.items():
        records["upstream", name] = _read(_fields_of_upstream(upstream_stats), upstream_stats.number)
        for url, endpoint in upstream_stats.endpoints.items():
            records["endpoint", name, url] = _read(_fields_of_endpoint(endpoint), 0)
    return records


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference between the records of two moments."""

    #: Those that are new or not as they were.
    records: Records
    #: The subjects that have no record any more.
    ended: tuple[Subject, ...] = ()

    @property
    def subjects(self) -> Iterator[Subject]:
        """All subjects with a difference."""
        return chain(self.records, self.ended)


def compare(before: Records, now: Records) -> Changes:
    """Return what has changed since `before`."""
    changed = {subject: record for subject, record in now.items() if before.get(subject) != record}
    return Changes(changed, tuple(before.keys() - now.keys()))


def pack(changes: Changes) -> bytes:
    """Return changes as bytes."""
    records = changes.records.items()
    plain = [(subject, each.number, each.gauge_count, each.numbers, each.labels) for subject, each in records]
    return pickle.dumps((plain, changes.ended), pickle.HIGHEST_PROTOCOL)


def unpack(content: bytes) -> Changes:
    """Return the changes of bytes. Both ends are one program of one user: pickle is safe here."""
    plain, ended = pickle.loads(content)
    return Changes({subject: Record(*values) for subject, *values in plain}, ended)


def restore_process(stats: Stats, record: Record) -> None:
    """Write the numbers of the process to `stats`."""
    *connections, lines = record.numbers
    stats.connections = dict(zip(stats.connections, map(int, connections), strict=True))
    stats.dropped_log_lines = partial(int, lines)


def restore_route(name: str, records: Records) -> RouteStats:
    """Return the statistics of a route from its own record and those of its bytes for each upstream."""
    route = RouteStats(name)
    for (kind, *names), record in records.items():
        if kind == "route":
            _write(_fields_of_route(route), record)
        else:
            for transfer, moved in zip(route.transfers.values(), record.numbers, strict=True):
                transfer.moved[names[1]] = int(moved)
    return route


def restore_upstream(name: str, records: Records) -> UpstreamStats:
    """Return the statistics of an upstream from its own record and those of its endpoints."""
    upstream = UpstreamStats(name)
    for (kind, *names), record in records.items():
        if kind == "upstream":
            _write(_fields_of_upstream(upstream), record)
        else:
            endpoint = upstream.endpoints[names[1]] = EndpointStats()
            _write(_fields_of_endpoint(endpoint), record)
    return upstream


@dataclass(frozen=True, slots=True)
class _Fields:
    """The fields of one subject, in the order of the numbers. Those in seconds come with `_TICKS`, others with 1."""

    #: Each an object and the name of its attribute.
    gauges: tuple[tuple[Any, str], ...]
    counters: tuple[tuple[Any, str], ...]
    histograms: tuple[tuple[Histogram, int], ...]
    labelled: tuple[tuple[dict[Any, Any], int], ...]


def _fields_of_route(route: RouteStats) -> _Fields:
    upload, download = route.transfers.values()
    return _Fields(
        gauges=((route, "in_flight"), (upload, "in_flight"), (download, "in_flight")),
        counters=(),
        histograms=(
            (route.durations, _TICKS),
            (route.first_bytes, _TICKS),
            (route.part_sizes, 1),
            *((histogram, 1) for each in (upload, download) for histogram in (each.chunk_sizes, each.chunk_rates)),
            *((histogram, 1) for each in (upload, download) for histogram in (each.rates, each.sizes)),
        ),
        labelled=(
            (route.requests, 1),
            (route.failures, 1),
            (route.faults, 1),
            (route.waits, _TICKS),
            (route.parts, 1),
            (route.mirrors, 1),
            (route.mirror_bytes, 1),
            (route.part_outcomes, 1),
            *((counter, 1) for each in (upload, download) for counter in (each.outcomes, each.lanes)),
        ),
    )


def _fields_of_upstream(upstream: UpstreamStats) -> _Fields:
    seconds = (upstream.response_seconds, upstream.connect_seconds, upstream.queue_seconds)
    return _Fields(
        gauges=((upstream, "queue_length"),),
        counters=(),
        histograms=tuple((histogram, _TICKS) for histogram in seconds),
        labelled=((upstream.retries, 1),),
    )


def _fields_of_endpoint(endpoint: EndpointStats) -> _Fields:
    return _Fields(
        gauges=((endpoint, "in_flight"),),
        counters=((endpoint, "ejections"),),
        histograms=(),
        labelled=((endpoint.requests, 1),),
    )


def _read(fields: _Fields, number: int) -> Record:
    numbers: list[float] = [getattr(owner, name) for owner, name in (*fields.gauges, *fields.counters)]
    for histogram, ticks in fields.histograms:
        numbers += histogram.counts
        numbers.append(_round_down(histogram.total, ticks))
    for counts, ticks in fields.labelled:
        numbers += counts.values() if ticks == 1 else [_round_down(value, ticks) for value in counts.values()]
    return Record(number, len(fields.gauges), numbers, tuple([tuple(counts) for counts, _ in fields.labelled]))


def _write(fields: _Fields, record: Record) -> None:
    numbers: list[Any] = record.numbers
    scalars = (*fields.gauges, *fields.counters)
    for (owner, name), number in zip(scalars, numbers, strict=False):
        setattr(owner, name, number)
    start = len(scalars)
    for histogram, _ in fields.histograms:
        end = start + len(histogram.counts)
        histogram.counts, histogram.total = numbers[start:end], numbers[end]
        start = end + 1
    for (counts, _), labels in zip(fields.labelled, record.labels, strict=True):
        end = start + len(labels)
        counts.update(zip(labels, numbers[start:end], strict=True))
        start = end


def _round_down(value: float, ticks: int) -> float:
    return math.floor(value * ticks) / ticks if ticks > 1 else math.floor(value)

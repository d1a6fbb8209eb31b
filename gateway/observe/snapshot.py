"""The numbers of Stats in a form that is cheap to send and to add: one list of numbers for each record.

A record is what begins and ends together: a route, the bytes of a route for one upstream, an upstream, an endpoint, the
process. `_ROUTE` and those below name the fields in the order of the numbers, once for both ways:

    Stats --take--> records --compare--> Changes --pack--> bytes --unpack--> Changes --`merge`--> records
    records --restore_route, ...--> RouteStats, ...

Sent and added as objects, the numbers of 50 routes took a worker 3 ms and each scrape 9 ms per worker. As records they
take 1 ms to read, and only numbers that have changed are sent and added: a GET changes 16 of 255. What is restored
has the objects of before where it has the same numbers.

Fractions are rounded down: sums of them are exact then, in any order. The end of a worker changes the order, and a
counter that falls by a rounding error is a restart to Prometheus, which then adds the whole counter again. Seconds are
rounded to 61 us, which is exact up to 2**39 s; rates and sizes to whole numbers.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, compress, count
from operator import add, gt, ne
from typing import Any, Final, TypeVar

from gateway.observe.stats import Counts, EndpointStats, Histogram, RouteStats, Stats, UpstreamStats

_T = TypeVar("_T")
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

    def with_numbers(self, numbers: Mapping[int, float]) -> Record:
        """Return a record with other numbers at some places."""
        changed = self.numbers.copy()
        for place, number in numbers.items():
            changed[place] = number
        return Record(self.number, self.gauge_count, changed, self.labels)

    def with_growth(self, before: Record, numbers: Mapping[int, float]) -> Record:
        """Return a sum, of which `before` is a part, after some numbers of that part have changed to these."""
        grown = self.numbers.copy()
        places = range(len(grown)) if self.labels == before.labels else self._places_of(before)
        for place, number in numbers.items():
            grown[places[place]] += number - before.numbers[place]
        return Record(self.number, self.gauge_count, grown, self.labels)

    def _places_of(self, part: Record) -> Sequence[int]:
        """Return where the numbers of a part are added, which may have other labels."""
        places = list(range(len(part.numbers) - sum(map(len, part.labels))))
        start = len(places)
        for own, others in zip(self.labels, part.labels, strict=True):
            places += range(start, start + len(own)) if own == others else [start + own.index(each) for each in others]
            start += len(own)
        return places

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
_NONE: Final[Records] = {}


def take(stats: Stats, routes: Records | None = None) -> Records:
    """Return the numbers of this moment; `routes` are those of the routes if they are known."""
    process: list[float] = [*stats.connections.values(), stats.dropped_log_lines()]
    records: Records = {("process",): Record(0, len(stats.connections), process)}
    records |= take_routes(stats) if routes is None else routes
    for name, upstream_stats in stats.upstreams.items():
        records["upstream", name] = _read(_UPSTREAM, upstream_stats, upstream_stats.number)
        for url, endpoint in upstream_stats.endpoints.items():
            records["endpoint", name, url] = _read(_ENDPOINT, endpoint, 0)
    return records


def take_routes(stats: Stats) -> Records:
    """Return the numbers of the routes."""
    records: Records = {}
    for name, route in stats.routes.items():
        records["route", name] = _read(_ROUTE, route, route.number)
        upload, download = (transfer.moved for transfer in route.transfers.values())
        for upstream, moved in upload.items():
            # A route may get an upstream again that it had before: its number does not change with that.
            records["moved", name, upstream] = Record(-route.number, 0, [moved, download[upstream]])
    return records


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference between the records of two moments."""

    #: Those that are new, or have other labels or another number.
    records: Records
    #: The numbers of others that are not as they were, by their places.
    numbers: dict[Subject, dict[int, float]] = field(default_factory=dict)
    #: The subjects that have no record any more.
    ended: tuple[Subject, ...] = ()

    @property
    def subjects(self) -> Iterator[Subject]:
        """All subjects with a difference."""
        return chain(self.records, self.numbers, self.ended)


def compare(before: Records, now: Records) -> Changes:
    """Return what has changed since `before`."""
    records: Records = {}
    numbers: dict[Subject, dict[int, float]] = {}
    for subject, record in now.items():
        known = before.get(subject)
        if known is record:
            continue
        if known is None or known.number != record.number or known.labels != record.labels:
            records[subject] = record
        elif known.numbers != record.numbers:
            places = compress(count(), map(ne, known.numbers, record.numbers))
            numbers[subject] = {place: record.numbers[place] for place in places}
    return Changes(records, numbers, tuple(before.keys() - now.keys()))


def pack(changes: Changes) -> bytes:
    """Return changes as bytes."""
    records = changes.records.items()
    plain = [(subject, each.number, each.gauge_count, each.numbers, each.labels) for subject, each in records]
    return pickle.dumps((plain, changes.numbers, changes.ended), pickle.HIGHEST_PROTOCOL)


def unpack(content: bytes) -> Changes:
    """Return the changes of bytes. Both ends are one program of one user: pickle is safe here."""
    plain, numbers, ended = pickle.loads(content)
    return Changes({subject: Record(*values) for subject, *values in plain}, numbers, ended)


def restore_process(stats: Stats, record: Record) -> None:
    """Write the numbers of the process to `stats`."""
    *connections, lines = record.numbers
    stats.connections = dict(zip(stats.connections, map(int, connections), strict=True))
    stats.dropped_log_lines = partial(int, lines)


def restore_route(name: str, records: Records, known: RouteStats | None = None, before: Records = _NONE) -> RouteStats:
    """Return the statistics of a route from its own record and those of its bytes for each upstream.

    `known` is what was made of `before`: objects of it whose numbers are the same are used again.
    """
    route = _copy(known) if known is not None else RouteStats(name)
    route.transfers = {direction: _copy(transfer) for direction, transfer in route.transfers.items()}
    for transfer in route.transfers.values():
        transfer.moved = Counts()
    for subject, record in records.items():
        kind, *names = subject
        if kind == "route":
            _write(_ROUTE, route, record, before.get(subject))
        else:
            for transfer, moved in zip(route.transfers.values(), record.numbers, strict=True):
                transfer.moved[names[1]] = int(moved)
    return route


def restore_upstream(
    name: str, records: Records, known: UpstreamStats | None = None, before: Records = _NONE
) -> UpstreamStats:
    """Return the statistics of an upstream from its own record and those of its endpoints, as above."""
    upstream = _copy(known) if known is not None else UpstreamStats(name)
    endpoints, upstream.endpoints = upstream.endpoints, {}
    for subject, record in records.items():
        kind, *names = subject
        if kind == "upstream":
            _write(_UPSTREAM, upstream, record, before.get(subject))
        else:
            endpoint = endpoints.get(names[1])
            endpoint = upstream.endpoints[names[1]] = _copy(endpoint) if endpoint is not None else EndpointStats()
            _write(_ENDPOINT, endpoint, record, before.get(subject))
    return upstream


@dataclass(frozen=True, slots=True)
class _Layout:
    """The fields of one kind of record, in the order of the numbers: each the place of its object, and its name.

    Histograms and counters in seconds come with `_TICKS`, others with 1.
    """

    #: Returns the objects that have the fields.
    objects: Callable[[Any], tuple[Any, ...]]
    gauges: tuple[tuple[int, str], ...] = ()
    counters: tuple[tuple[int, str], ...] = ()
    histograms: tuple[tuple[int, str, int], ...] = ()
    labelled: tuple[tuple[int, str, int], ...] = ()


#: Upload and download.
_TRANSFERS: Final = (1, 2)
_ROUTE: Final = _Layout(
    objects=lambda route: (route, *route.transfers.values()),
    gauges=tuple((place, "in_flight") for place in (0, *_TRANSFERS)),
    histograms=(
        (0, "durations", _TICKS),
        (0, "first_bytes", _TICKS),
        (0, "part_sizes", 1),
        *((place, name, 1) for place in _TRANSFERS for name in ("chunk_sizes", "chunk_rates", "rates", "sizes")),
    ),
    labelled=(
        (0, "waits", _TICKS),
        *((0, name, 1) for name in ("requests", "failures", "faults", "parts", "mirrors", "mirror_bytes")),
        (0, "part_outcomes", 1),
        *((place, name, 1) for place in _TRANSFERS for name in ("outcomes", "lanes")),
    ),
)
_UPSTREAM: Final = _Layout(
    objects=lambda upstream: (upstream,),
    gauges=((0, "queue_length"),),
    histograms=tuple((0, name, _TICKS) for name in ("response_seconds", "connect_seconds", "queue_seconds")),
    labelled=((0, "retries", 1),),
)
_ENDPOINT: Final = _Layout(
    objects=lambda endpoint: (endpoint,),
    gauges=((0, "in_flight"),),
    counters=((0, "ejections"),),
    labelled=((0, "requests", 1),),
)


def _read(layout: _Layout, owner: object, number: int) -> Record:
    objects = layout.objects(owner)
    numbers: list[float] = [getattr(objects[place], name) for place, name in (*layout.gauges, *layout.counters)]
    for place, name, ticks in layout.histograms:
        histogram = getattr(objects[place], name)
        numbers += histogram.counts
        numbers.append(math.floor(histogram.total * ticks) / ticks if ticks > 1 else math.floor(histogram.total))
    labels = []
    for place, name, ticks in layout.labelled:
        counts = getattr(objects[place], name)
        labels.append(tuple(counts))
        numbers += counts.values() if ticks == 1 else [math.floor(each * ticks) / ticks for each in counts.values()]
    return Record(number, len(layout.gauges), numbers, tuple(labels))


def _write(layout: _Layout, owner: object, record: Record, before: Record | None) -> None:
    """Write a record; histograms and counters stay the same objects if they are as in `before`, the last one."""
    objects = layout.objects(owner)
    numbers: list[Any] = record.numbers
    known: list[Any] = before.numbers if before is not None else []
    scalars = (*layout.gauges, *layout.counters)
    for (place, name), number in zip(scalars, numbers, strict=False):
        setattr(objects[place], name, number)
    start = len(scalars)
    for place, name, _ in layout.histograms:
        histogram = getattr(objects[place], name)
        end = start + len(histogram.counts)
        if numbers[start : end + 1] != known[start : end + 1]:
            changed = Histogram(histogram.bounds)
            changed.counts, changed.total = numbers[start:end], numbers[end]
            setattr(objects[place], name, changed)
        start = end + 1
    are_labels_known = before is not None and before.labels == record.labels
    for (place, name, _), labels in zip(layout.labelled, record.labels, strict=True):
        end = start + len(labels)
        if not are_labels_known or numbers[start:end] != known[start:end]:
            counts = getattr(objects[place], name)
            setattr(objects[place], name, type(counts)(zip(labels, numbers[start:end], strict=True)))
        start = end


def _copy(value: _T) -> _T:
    """Return a shallow copy. `copy.copy` takes three times as long."""
    copied = object.__new__(type(value))
    for name in type(value).__slots__:  # type: ignore[attr-defined]  # the statistics have them
        setattr(copied, name, getattr(value, name))
    return copied

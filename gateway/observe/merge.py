"""Adds up the statistics of the workers of a gateway. Pure.

    numbers                                   of workers that serve   of workers that have ended
    ----------------------------------------  ----------------------  --------------------------
    counters, histograms                      added                   added
    gauges: in flight, queued, connections    added                   none
    of the gateway: endpoints up, slots,      the supervisor's own    the supervisor's own
    reloads, time of the config, workers

What was shown once is never more than what is shown later, until the series ends. A series ends when neither the config
in force nor the numbers of a worker have it: while one worker still has exchanges of a removed route, all that was
counted for the route stays. A name that comes back after that starts at 0.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from gateway.observe.snapshot import (
    Changes,
    Record,
    Records,
    Subject,
    compare,
    restore_process,
    restore_route,
    restore_upstream,
)
from gateway.observe.stats import RouteStats, Stats, UpstreamStats

#: Kinds of subjects whose numbers become a part of another.
_PART_OF: Final = {"moved": "route", "endpoint": "upstream"}


class Totals:
    """The numbers of all workers, those that have ended included. Only numbers that have changed are added."""

    def __init__(self) -> None:
        #: The last numbers of each worker that has not ended.
        self._last: dict[Hashable, Records] = {}
        #: Counted by workers that have ended, and in records that a worker has no more.
        self._ended: Records = {}
        #: The supervisor's own numbers.
        self._own: Records = {}
        #: Subjects whose numbers are all to be added up anew, in their order: those of some parts are new, or gone.
        self._changed: dict[Subject, None] = {}
        #: What has other sums than the objects that were made of them.
        self._grown: dict[Subject, None] = {}
        #: The sums, by what they are a part of: its kind, and its name if it has one.
        self._sums: dict[Subject, Records] = {}
        #: What the objects below were made of.
        self._restored: dict[Subject, Records] = {}
        self._routes: dict[str, RouteStats] = {}
        self._upstreams: dict[str, UpstreamStats] = {}

    def update(self, worker: Hashable, changes: Changes) -> None:
        """Change the numbers of a worker; the first changes add the worker."""
        records = self._last.setdefault(worker, {})
        for subject, later in changes.records.items():
            record = records.get(subject)
            if record is not None and not record.is_continued_by(later):
                self._end(subject, record)
            records[subject] = later
        for subject, numbers in changes.numbers.items():
            record = records[subject]
            records[subject] = later = record.with_numbers(numbers)
            if record.is_continued_by(later):
                self._grow(subject, record, numbers)
            else:
                self._end(subject, record)
                self._changed[subject] = None
        for subject in changes.ended:
            record = records.pop(subject, None)
            if record is not None:
                self._end(subject, record)
        self._changed |= dict.fromkeys([*changes.records, *changes.ended])

    def retire(self, worker: Hashable) -> None:
        """Keep the counters of a worker that has ended; nothing if it has none."""
        records = self._last.pop(worker, {})
        for subject, record in records.items():
            self._end(subject, record)
        self._changed |= dict.fromkeys(records)

    def stats(self, records: Records, own: Stats) -> Stats:
        """Return the statistics of the gateway.

        `records` are the supervisor's, with the routes of the config in force; `own` has what only the supervisor
        knows. Routes and upstreams that have not changed are the objects of the last call. May be called in a thread
        of its own.
        """
        self._changed |= dict.fromkeys(compare(self._own, records).subjects)
        self._own = records
        changed, self._changed = self._changed, {}
        grown, self._grown = self._grown, {}
        for whole in grown | dict.fromkeys([self._add_up(subject) for subject in changed]):
            self._restore(whole)
        stats = Stats([], [])
        stats.routes |= self._routes
        stats.upstreams = dict(self._upstreams)
        for record in self._sums.get(("process",), {}).values():
            restore_process(stats, record)
        _copy_own(stats, own)
        return stats

    def _add_up(self, subject: Subject) -> Subject:
        """Add up the numbers of a subject; return what they are a part of."""
        whole = _whole_of(subject)
        sums = self._sums.setdefault(whole, {})
        own = self._own.get(subject)
        parts = [records[subject] for records in self._last.values() if subject in records]
        if parts or own is not None:
            # The supervisor's own last: they are 0 mostly, and have no label that the others lack.
            parts += [each for each in (self._ended.get(subject), own) if each is not None]
            # Adding replaces the numbers of a record: those of the parts stay as they are.
            total = sums[subject] = parts[0].copy()
            for each in parts[1:]:
                total.add(each)
        else:
            self._ended.pop(subject, None)
            sums.pop(subject, None)
        return whole

    def _grow(self, subject: Subject, before: Record, numbers: dict[int, float]) -> None:
        """Add what a worker has counted since `before`, unless the subject is added up anew in any case."""
        if subject not in self._changed:
            whole = _whole_of(subject)
            sums = self._sums[whole]
            sums[subject] = sums[subject].with_growth(before, numbers)
            self._grown[whole] = None

    def _restore(self, whole: Subject) -> None:
        """Make an object of the sums of a route or an upstream; those that were made before may be in use."""
        records, before = self._sums[whole], self._restored.pop(whole, {})
        if records:
            self._restored[whole] = records.copy()
        else:
            del self._sums[whole]
        match whole:
            case ("route", name) if records:
                self._routes[name] = restore_route(name, records, self._routes.get(name), before)
            case ("route", name):
                self._routes.pop(name, None)
            case ("upstream", name) if records:
                self._upstreams[name] = restore_upstream(name, records, self._upstreams.get(name), before)
            case ("upstream", name):
                self._upstreams.pop(name, None)

    def _end(self, subject: Subject, record: Record) -> None:
        counted = record.without_gauges()
        if subject in self._ended:
            self._ended[subject].add(counted)
        else:
            self._ended[subject] = counted


def _whole_of(subject: Subject) -> Subject:
    """Return what the numbers of a subject become a part of."""
    kind, *names = subject
    return _PART_OF.get(kind, kind), *names[:1]


def _copy_own(stats: Stats, own: Stats) -> None:
    """Set the numbers that only the supervisor has."""
    for name, upstream in list(own.upstreams.items()):
        known = stats.upstreams.get(name)
        if known is None:
            continue
        known.slots = upstream.slots
        for url, endpoint in list(upstream.endpoints.items()):
            # One that is new has its record soon.
            each = known.endpoints.get(url)
            if each is not None:
                each.is_up, each.reason, each.since = endpoint.is_up, endpoint.reason, endpoint.since
                each.ejected_until = endpoint.ejected_until
    stats.reloads, stats.configured_at = own.reloads, own.configured_at
    stats.workers, stats.worker_restarts, stats.stale_workers = own.workers, own.worker_restarts, own.stale_workers

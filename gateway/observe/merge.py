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

from gateway.observe.snapshot import Record, Records, Subject, restore
from gateway.observe.stats import EndpointStats, Stats


class Totals:
    """The numbers of all workers, those that have ended included."""

    def __init__(self) -> None:
        #: The last numbers of each worker that has not ended.
        self._last: dict[Hashable, Records] = {}
        #: Counted by workers that have ended, and in records that a worker has no more.
        self._ended: Records = {}

    def update(self, worker: Hashable, records: Records) -> None:
        """Replace the numbers of a worker by newer ones; the first ones add the worker."""
        for subject, record in self._last.get(worker, {}).items():
            later = records.get(subject)
            if later is None or not record.is_continued_by(later):
                self._end(subject, record)
        self._last[worker] = records

    def retire(self, worker: Hashable) -> None:
        """Keep the counters of a worker that has ended; nothing if it has none."""
        for subject, record in self._last.pop(worker, {}).items():
            self._end(subject, record)

    def total(self, own: Records) -> Records:
        """Return the numbers of the gateway; `own` are the supervisor's, with the routes of the config in force."""
        living = (own, *self._last.values())
        subjects = set().union(*living)
        self._ended = {subject: record for subject, record in self._ended.items() if subject in subjects}
        total: Records = {}
        # The supervisor's own last: they are 0 mostly, and have no label that the others lack.
        for records in (*self._last.values(), self._ended, own):
            add_records(total, records)
        return total

    def _end(self, subject: Subject, record: Record) -> None:
        add_records(self._ended, {subject: record.without_gauges()})


def add_records(total: Records, records: Records) -> None:
    """Add records to those of `total`."""
    for subject, record in records.items():
        known = total.get(subject)
        if known is None:
            # Adding replaces the numbers of a record: those of `records` stay as they are.
            total[subject] = record.copy()
        else:
            known.add(record)


def gateway_stats(total: Records, own: Stats) -> Stats:
    """Return the statistics of a gateway: the sum over its workers, and the numbers that only the supervisor has.

    May be called from any thread.
    """
    stats = restore(total)
    for name, upstream in list(own.upstreams.items()):
        known = stats.upstreams.get(name)
        if known is None:
            continue
        known.slots = upstream.slots
        for url, endpoint in list(upstream.endpoints.items()):
            each = known.endpoints.setdefault(url, EndpointStats())
            each.is_up, each.reason, each.since = endpoint.is_up, endpoint.reason, endpoint.since
            each.ejected_until = endpoint.ejected_until
    stats.reloads, stats.configured_at = own.reloads, own.configured_at
    stats.workers, stats.worker_restarts, stats.stale_workers = own.workers, own.worker_restarts, own.stale_workers
    return stats

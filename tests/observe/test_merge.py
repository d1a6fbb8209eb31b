"""Statistics of several workers are added exactly, and what was shown once never falls while its series lasts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Outcome
from gateway.observe.merge import Totals
from gateway.observe.prometheus import collect
from gateway.observe.snapshot import Changes, Records, compare, pack, take, unpack
from gateway.observe.stats import (
    Direction,
    EndpointStats,
    Histogram,
    Leg,
    Stats,
)

ROUTES = {"r": "u", "s": "v"}
#: What the supervisor alone decides: never added.
OF_THE_GATEWAY = {
    "is_up",
    "reason",
    "since",
    "ejected_until",
    "slots",
    "reloads",
    "configured_at",
    "workers",
    "worker_restarts",
    "stale_workers",
}
#: Which of the same name it is.
IDENTITY = {"route", "upstream", "number", "_next_number", "before_drop", "bounds"}
WORKERS = st.integers(0, 3)
SECONDS = st.floats(0, 1e6)


def make_stats(names: str = "rs") -> Stats:
    return Stats([(name, ROUTES[name]) for name in names], [ROUTES[name] for name in names])


def fields(value: object) -> dict[str, Any]:
    """Return the attributes of one of the classes of `stats`."""
    names = getattr(type(value), "__slots__", None) or vars(value)
    return {name: getattr(value, name) for name in names}


def numbers(value: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of statistics with the path to it; zeros left out."""
    if isinstance(value, int | float):
        if value:
            yield path, value
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from numbers(each, f"{path}.{place}")
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from numbers(each, f"{path}.{key}")
    elif callable(value):
        yield from numbers(value(), path)
    else:
        for name, each in fields(value).items():
            if name not in IDENTITY | OF_THE_GATEWAY:
                yield from numbers(each, f"{path}.{name}")


def fill(value: object, count: Iterator[int]) -> None:
    """Set every number that statistics have to one that nothing else has."""
    if isinstance(value, list):
        value[:] = [next(count) for _ in value]
    elif isinstance(value, dict):
        for key, each in list(value.items() or [("key", 0)]):
            if isinstance(each, int | float):
                value[key] = next(count)
            else:
                fill(each, count)
    else:
        for name, each in fields(value).items():
            if name in IDENTITY | OF_THE_GATEWAY:
                continue
            if isinstance(each, int | float):
                setattr(value, name, next(count))
            elif not callable(each):
                fill(each, count)


@st.composite
def some_stats(draw: st.DrawFn) -> Stats:
    stats = make_stats(draw(st.sampled_from(["", "r", "s", "rs"])))
    for _ in range(draw(st.integers(0, 8))):
        count_something(stats, draw(st.sampled_from(sorted(stats.routes))), draw(st.integers(0, 3)), draw(SECONDS))
    return stats


def count_something(stats: Stats, name: str, kind: int, seconds: float) -> None:
    """Count an event on a route as the gateway does."""
    route = stats.routes[name]
    transfer = route.transfers[Direction.UPLOAD]
    match kind:
        case 0:
            route.requests["GET", 200] += 1
            route.durations.observe(seconds)
            route.first_bytes.observe(seconds / 3)
        case 1:
            transfer.moved[ROUTES.get(name, "")] += int(seconds)
            transfer.chunk_sizes.observe(int(seconds))
            transfer.chunk_rates.observe(seconds * 1e9)
        case 2:
            route.waits[Leg.CONNECT] += seconds / 3
            transfer.outcomes[Outcome.COMPLETE] += 1
            transfer.lanes["copy"] += 1
        case _:
            route.in_flight += 1
            transfer.in_flight += 1
            for upstream in stats.upstreams.values():
                upstream.queue_length += 1
                upstream.retries["dns_error"] += 1
                endpoint = upstream.endpoints.setdefault("http://e", EndpointStats())
                endpoint.in_flight += 1
                endpoint.ejections += 1
                endpoint.requests[200] += 1
            stats.connections["active"] += 1


def sent(stats: Stats, before: Records | None = None) -> Changes:
    """Return what the supervisor gets of a worker's statistics that has sent `before`."""
    return unpack(pack(compare(before or {}, take(stats))))


def merged(*parts: Stats) -> Stats:
    totals = Totals()
    for number, part in enumerate(parts):
        totals.update(number, sent(part))
    return totals.stats({}, Stats([], []))


def test_every_number_is_sent_and_added() -> None:
    """A number that is new in `stats`, and forgotten in `snapshot`, would stay 0 with several workers."""
    stats = make_stats("r")
    stats.upstreams["u"].endpoints["http://e"] = EndpointStats()
    fill(stats, iter(range(1, 10_000)))
    stats.dropped_log_lines = lambda: 10_000
    assert len(dict(numbers(stats))) > 100
    assert dict(numbers(merged(stats))) == dict(numbers(stats))
    doubled = {path: 2 * number for path, number in numbers(stats)}
    assert dict(numbers(merged(stats, stats))) == doubled


def test_adding_leaves_the_parts_as_they_are() -> None:
    stats = make_stats()
    count_something(stats, "r", 3, 1.0)
    part = take(stats)
    totals = Totals()
    for number in range(2):
        totals.update(number, Changes(part))
    for _ in range(2):
        totals.stats(part, stats)
        totals.retire(1)
    assert part == take(stats)


@given(some_stats(), some_stats(), some_stats())
def test_order_does_not_change_a_sum(a: Stats, b: Stats, c: Stats) -> None:
    """With plain sums of fractions, a counter fell by a rounding error when a worker ended."""
    expected = dict(numbers(merged(a, b, c)))
    assert dict(numbers(merged(merged(a, b), c))) == expected
    assert dict(numbers(merged(a, merged(b, c)))) == expected
    assert dict(numbers(merged(c, b, a))) == expected


@given(some_stats(), some_stats())
def test_sum_is_that_of_the_parts_but_for_what_is_rounded_down(a: Stats, b: Stats) -> None:
    both = dict(numbers(merged(a, b)))
    parts = [dict(numbers(a)), dict(numbers(b))]
    for path in {path for part in parts for path in part}:
        exact = math.fsum(part.get(path, 0.0) for part in parts)
        step = 2.0 if path.endswith("total") else 2**-13
        assert exact - step - exact * 1e-12 <= both.get(path, 0.0) <= exact + exact * 1e-12, path


def test_only_what_has_changed_is_sent_and_restored_anew() -> None:
    """With 50 routes the supervisor used 12 ms of CPU each second in which nothing happened."""
    worker, own = make_stats("rs"), make_stats("rs")
    totals = Totals()
    totals.update(1, sent(worker))
    first = totals.stats(take(own), own)
    before = take(worker)
    assert sent(worker, before) == Changes({})
    count_something(worker, "r", 0, 1.0)
    changes = sent(worker, before)
    assert set(changes.subjects) == {("route", "r")}
    totals.update(1, changes)
    second = totals.stats(take(own), own)
    assert second.routes["r"] is not first.routes["r"]
    assert (first.routes["r"].requests["GET", 200], second.routes["r"].requests["GET", 200]) == (0, 1)
    assert second.routes["s"] is first.routes["s"]
    assert second.upstreams["u"] is first.upstreams["u"]


def test_gauges_end_with_their_worker() -> None:
    stats = make_stats("r")
    for kind in range(4):
        count_something(stats, "r", kind, 2.0)
    # The series go on: the config in force has them.
    own = make_stats("r")
    own.upstreams["u"].endpoints["http://e"] = EndpointStats()
    totals = Totals()
    totals.update(1, sent(stats))
    before = dict(numbers(totals.stats(take(own), own)))
    totals.retire(1)
    after = dict(numbers(totals.stats(take(own), own)))
    gone = before.keys() - after.keys()
    assert {path.rpartition(".")[2] for path in gone} == {"in_flight", "queue_length", "active"}
    assert len(gone) == 5


def samples(stats: Stats) -> dict[tuple[str, ...], float]:
    """Return the series of counters and histograms, buckets summed up as they are shown."""
    shown: dict[tuple[str, ...], float] = {}
    for metric, values, number in chain.from_iterable(section.rows for section in collect(stats)):
        key = (metric.name, *values)
        if isinstance(number, dict):
            for labels, each in number.items():
                texts = labels if isinstance(labels, tuple) else (labels,)
                if metric.kind == "counter":
                    shown[*key, *map(str, texts)] = each
            continue
        if isinstance(number, Histogram):
            shown[*key, "sum"] = number.total
            for place, count in enumerate(accumulate(number.counts)):
                shown[*key, str(place)] = count
        elif metric.kind == "counter":
            shown[key] = number
    return shown


class Model:
    """A gateway with workers: what each counts, what a scrape has shown, what must be shown."""

    def __init__(self) -> None:
        self.own = make_stats("r")
        self.totals = Totals()
        self.in_force = "r"
        self.workers = [self.start_worker(place) for place in range(4)]
        #: Requests of each route by worker that it has not sent yet.
        self.unsent: list[dict[str, int]] = [{} for _ in self.workers]
        self.expected: dict[str, int] = {}
        self.shown: dict[tuple[str, ...], float] = {}
        self.ids = list(range(4))
        #: The last records that each worker has sent.
        self.sent: list[Records] = [{} for _ in self.workers]

    def start_worker(self, place: int) -> Stats:
        stats = make_stats(self.in_force)
        stats.before_drop = lambda: self.send(place)
        return stats

    def count(self, place: int, name: str, kind: int, seconds: float) -> None:
        if name not in self.workers[place].routes:
            return
        count_something(self.workers[place], name, kind, seconds)
        if kind == 0:
            self.expected[name] = self.expected.get(name, 0) + 1
            self.unsent[place][name] = self.unsent[place].get(name, 0) + 1

    def send(self, place: int) -> None:
        changes = sent(self.workers[place], self.sent[place])
        self.sent[place] = take(self.workers[place])
        self.totals.update(self.ids[place], changes)
        self.unsent[place] = {}

    def kill(self, place: int) -> None:
        self.totals.retire(self.ids[place])
        for name, count in self.unsent[place].items():
            self.expected[name] -= count
        self.unsent[place] = {}
        self.ids[place] = max(self.ids) + 1
        self.workers[place] = self.start_worker(place)
        self.sent[place] = {}

    def reload(self, names: str) -> None:
        """Put a config in force; the workers follow in steps of their own."""
        self.in_force = names
        add_and_keep(self.own, names)

    def follow(self, place: int) -> None:
        add_and_keep(self.workers[place], self.in_force)

    def scrape(self) -> None:
        for place in range(4):
            self.send(place)
        total = self.totals.stats(take(self.own), self.own)
        shown = samples(total)
        assert [key for key, number in shown.items() if number < self.shown.get(key, 0)] == []
        self.shown = shown
        assert dict(numbers(total)) == dict(numbers(self.add_up_anew()))
        living = [self.own, *self.workers]
        for name in ROUTES:
            if any(name in stats.routes for stats in living):
                assert total.routes[name].requests["GET", 200] == self.expected.get(name, 0)
            else:
                assert name not in total.routes
                self.expected[name] = 0
        assert total.routes[""].in_flight == sum(stats.routes[""].in_flight for stats in self.workers)

    def add_up_anew(self) -> Stats:
        """Return the statistics, made of the last records at once instead of the changes one after the other."""
        totals = Totals()
        for number, records in self.totals._last.items():
            totals.update(number, Changes(records.copy()))
        totals._ended = {subject: record.copy() for subject, record in self.totals._ended.items()}
        return totals.stats(take(self.own), self.own)


def add_and_keep(stats: Stats, names: str) -> None:
    routes, upstreams = [(name, ROUTES[name]) for name in names], [ROUTES[name] for name in names]
    stats.add(routes, upstreams)
    stats.keep(routes, upstreams)


STEPS = st.one_of(
    st.tuples(st.just("count"), WORKERS, st.sampled_from(["", "r", "s"]), st.integers(0, 3), SECONDS),
    st.tuples(st.sampled_from(["send", "kill", "follow"]), WORKERS),
    st.tuples(st.just("reload"), st.sampled_from(["r", "s", "rs"])),
    st.tuples(st.just("scrape")),
)


@given(st.lists(STEPS, max_size=40))
def test_counters_never_go_back_and_are_what_was_counted(steps: list[tuple[Any, ...]]) -> None:
    """A killed worker loses what it had not sent; a name that comes back after its series ended starts at 0."""
    model = Model()
    for name, *values in steps:
        getattr(model, name)(*values)
    model.scrape()


def test_route_that_is_dropped_and_created_between_two_snapshots_adds_to_what_was() -> None:
    """One worker still has it, so the series goes on; the other's old counts were lost."""
    model = Model()
    for place in (0, 1):
        model.count(place, "r", 0, 1.0)
    model.reload("s")
    model.follow(0)
    model.reload("r")
    model.follow(0)
    model.count(0, "r", 0, 1.0)
    model.scrape()
    assert model.expected["r"] == 3


def test_upstream_of_a_route_changes_while_a_worker_still_counts_for_the_one_before() -> None:
    model = Model()
    model.count(0, "r", 1, 5.0)
    model.count(1, "r", 1, 7.0)
    model.scrape()
    model.own.keep([("r", "w")], ["w"])
    model.own.add([("r", "w")], ["w"])
    for place in range(4):
        worker = model.workers[place]
        worker.add([("r", "w")], ["w"])
        if place:
            worker.keep([("r", "w")], ["w"])
        model.scrape()
        assert model.shown["gateway_transfer_bytes", "r", "u", "upload"] == 12
    model.workers[0].keep([("r", "w")], ["w"])
    model.scrape()
    assert ("gateway_transfer_bytes", "r", "u", "upload") not in model.shown


@pytest.mark.parametrize("count", ["ejections", "requests"])
def test_endpoint_that_is_added_again_adds_to_what_was(count: str) -> None:
    """The other workers still have it, so its series go on."""
    model = Model()
    for place in range(4):
        model.workers[place].upstreams["u"].endpoints = {"http://e": counted_endpoint(count)}
    model.scrape()
    model.workers[0].upstreams["u"].endpoints = {"http://e": EndpointStats()}
    model.scrape()
    assert model.shown["gateway_upstream_ejections", "u", "http://e"] == 4 * (count == "ejections")
    assert model.shown["gateway_upstream_requests", "u", "http://e", "500"] == 4 * (count == "requests")


def counted_endpoint(count: str) -> EndpointStats:
    endpoint = EndpointStats(ejections=int(count == "ejections"))
    endpoint.requests[500] = int(count == "requests")
    return endpoint


def test_endpoint_that_left_an_upstream_ends_its_series_when_no_worker_has_it() -> None:
    model = Model()
    for place in range(4):
        model.workers[place].upstreams["u"].endpoints = {"http://e": counted_endpoint("ejections")}
    model.scrape()
    for place in range(4):
        model.workers[place].upstreams["u"].endpoints = {"http://f": EndpointStats()}
        model.scrape()
        assert model.shown.get(("gateway_upstream_ejections", "u", "http://e")) == (None if place == 3 else 4)
    assert model.shown["gateway_upstream_ejections", "u", "http://f"] == 0


def test_numbers_of_the_gateway_are_the_supervisors() -> None:
    own, worker = make_stats("r"), make_stats("rs")
    own.upstreams["u"].endpoints = {"http://e": EndpointStats(is_up=False)}
    own.upstreams["u"].slots = 3
    worker.upstreams["u"].endpoints = {"http://e": EndpointStats(in_flight=2)}
    worker.reloads["success"] = worker.worker_restarts = 7
    own.reloads["failure"] = own.workers = own.stale_workers = 2
    own.record_config()
    totals = Totals()
    totals.update(1, sent(worker))
    totals.retire("one that sent nothing")
    total = totals.stats(take(own), own)
    assert (total.reloads, total.workers, total.worker_restarts, total.stale_workers) == (own.reloads, 2, 0, 2)
    assert total.upstreams["u"].slots == 3
    assert total.upstreams["u"].endpoints == {"http://e": EndpointStats(is_up=False, in_flight=2)}
    assert total.configured_at == own.configured_at

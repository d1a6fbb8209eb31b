"""The text of /metrics is what prometheus_client would write, and what its parsers read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, exposition, metrics_core
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from gateway.errors import Outcome
from gateway.observe.exposition import OPENMETRICS_TYPE, TEXT_TYPE, Kind, Metric, Row, Section, Value, Writer
from gateway.observe.prometheus import METRICS, Exposition
from gateway.observe.stats import CHUNK_BOUNDS, SECONDS_BOUNDS, Histogram, Stats

KINDS: list[Kind] = ["counter", "gauge", "histogram"]
#: Everything that must be escaped, and some of what must not.
TEXTS = st.text(alphabet='ab\\"\n{}=,%é ', max_size=8)
NUMBERS = st.one_of(st.integers(0, 2**53), st.floats(0, 1e15), st.just(math.inf))


@dataclass
class Family:
    """A metric with its series."""

    metric: Metric
    rows: list[Row] = field(default_factory=list)

    def add(self, values: Sequence[str], number: Value) -> None:
        self.rows.append((self.metric, values, number))


def write(families: Iterable[Family], *, is_openmetrics: bool = False) -> bytes:
    """Return the text of a new writer."""
    sections = [Section(number, family.rows) for number, family in enumerate(families)]
    return Writer([family.metric for family in families]).write(sections, is_openmetrics=is_openmetrics)


@st.composite
def histograms(draw: st.DrawFn, bounds: Sequence[Sequence[float]] = (CHUNK_BOUNDS, SECONDS_BOUNDS)) -> Histogram:
    histogram = Histogram(draw(st.sampled_from(bounds)))
    for value in draw(st.lists(st.floats(0, 1e9), max_size=5)):
        histogram.observe(value)
    return histogram


@st.composite
def families(draw: st.DrawFn) -> Family:
    kind: Kind = draw(st.sampled_from(KINDS))
    labels = draw(st.sampled_from([(), ("route",), ("route", "direction")]))
    family = Family(Metric(kind, f"gateway_{kind}_{len(labels)}", "What it is.", labels))
    for values in draw(st.lists(st.tuples(*[TEXTS] * len(labels)), max_size=3, unique=True)):
        family.add(values, draw(histograms() if kind == "histogram" else NUMBERS))
    return family


class Reference:
    """A collector of prometheus_client with the same families."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[metrics_core.Metric]:
        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        for family in self._families:
            ours = family.metric
            if ours.kind == "histogram":
                metric = HistogramMetricFamily(ours.name, ours.help, labels=ours.labels)
                for _, values, number in family.rows:
                    assert isinstance(number, Histogram)
                    bounds = [*(str(bound) for bound in map(float, number.bounds)), "+Inf"]
                    buckets = [(bound, sum(number.counts[: place + 1])) for place, bound in enumerate(bounds)]
                    metric.add_metric(values, buckets, number.total)
                yield metric
                continue
            other = kinds[ours.kind](ours.name, ours.help, labels=ours.labels)
            for _, values, number in family.rows:
                assert isinstance(number, int | float)
                other.add_metric(values, number)
            yield other


COUNTERS = st.dictionaries(
    st.one_of(st.integers(200, 599), TEXTS, st.sampled_from(Outcome)), st.integers(0, 2**53), max_size=4
)


VALUES = st.one_of(histograms([CHUNK_BOUNDS]), COUNTERS)
ROUTES = st.sampled_from(["r", "s", "é%"])
SERIES = (
    Metric("histogram", "gateway_a", "A.", ("route",)),
    Metric("counter", "gateway_b", "B.", ("route", "code")),
    Metric("gauge", "gateway_c", "C.", ("route",)),
)


def row(route: str, value: Value) -> Row:
    """Return the row of the metric that has values of this kind."""
    place = 0 if isinstance(value, Histogram) else 1 if isinstance(value, dict) else 2
    return SERIES[place], (route,), value


def section(route: str, value: Value, *, is_fixed: bool) -> Section:
    """Return the section of a route with one series, of which `value` is the source if it is fixed."""
    return Section(route, [row(route, value)], value if is_fixed else None)


@given(st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), max_size=5))
def test_text_of_changed_numbers_is_that_of_a_new_writer(steps: list[dict[str, Histogram | dict[Any, Any]]]) -> None:
    """Blocks are kept from one text to the next: none may be that of other numbers or labels."""
    writer = Writer(SERIES)
    for values in steps:
        sections = [section(route, value, is_fixed=False) for route, value in values.items()]
        text = writer.write(sections, is_openmetrics=False)
        assert text == Writer(SERIES).write(sections, is_openmetrics=False)
        for value in values.values():
            # Counted on in place, as a gateway of one process does.
            if isinstance(value, dict):
                value.update(dict.fromkeys(value, 7))
            else:
                value.observe(5.0)
        again = writer.write(sections, is_openmetrics=False)
        assert again == Writer(SERIES).write(sections, is_openmetrics=False)


@given(st.lists(VALUES, min_size=1, max_size=4), st.lists(st.dictionaries(ROUTES, st.integers(0, 3)), max_size=6))
def test_text_of_sections_with_a_source_is_that_of_a_new_writer(
    values: list[Histogram | dict[Any, Any]], steps: list[dict[str, int]]
) -> None:
    """Sections come, stay the same, change and go; some have the source of another."""
    writer = Writer(SERIES)
    for step in steps:
        sections = [section(route, values[place % len(values)], is_fixed=True) for route, place in step.items()]
        text = writer.write(sections, is_openmetrics=False)
        assert text == Writer(SERIES).write(sections, is_openmetrics=False)


@given(
    st.lists(st.one_of(VALUES, NUMBERS), min_size=1, max_size=4),
    st.lists(st.lists(st.tuples(ROUTES, st.integers(0, 3)), max_size=4), max_size=5),
    st.booleans(),
)
def test_text_of_a_section_whose_rows_come_and_go_is_that_of_a_new_writer(
    values: list[Value], steps: list[list[tuple[str, int]]], is_fixed: bool
) -> None:
    writer = Writer(SERIES)
    for step in steps:
        rows = [row(route, values[place % len(values)]) for route, place in step]
        sections = [Section("all", rows, rows if is_fixed else None)]
        text = writer.write(sections, is_openmetrics=False)
        assert text == Writer(SERIES).write(sections, is_openmetrics=False)


def test_rows_of_a_section_with_the_same_source_are_not_read_again() -> None:
    writer, histogram, source = Writer(SERIES), Histogram(CHUNK_BOUNDS), object()
    rows: list[Row] = [(SERIES[0], ("r",), histogram)]
    text = writer.write([Section("r", rows, source)], is_openmetrics=False)
    assert writer.write([Section("r", [], source)], is_openmetrics=False) == text
    assert writer.write([Section("r", [], object())], is_openmetrics=False) != text
    assert writer.write([Section("s", [], source)], is_openmetrics=False) != text


@given(st.dictionaries(st.tuples(TEXTS, st.integers(200, 599)), st.integers(0, 2**53), max_size=4), TEXTS)
def test_counters_of_a_dictionary_are_written_as_one_series_each(
    counters: dict[tuple[str, int], int], route: str
) -> None:
    together, apart = (Family(Metric("counter", "gateway_a", "A.", ("route", "method", "code"))) for _ in range(2))
    together.add((route,), counters)
    for (method, code), number in counters.items():
        apart.add((route, method, str(code)), number)
    assert write([together]) == write([apart])


def test_block_whose_numbers_are_the_same_is_kept_and_that_of_an_ended_series_is_not() -> None:
    writer, histogram = Writer(SERIES), Histogram(CHUNK_BOUNDS)
    rows: list[Row] = [(SERIES[0], (route,), histogram) for route in ("r", "s")]
    writer.write([Section("routes", rows)], is_openmetrics=False)
    kept, _ = writer._written["routes"].blocks
    writer.write([Section("routes", rows[:1])], is_openmetrics=True)
    (block,) = writer._written["routes"].blocks
    assert block is kept
    writer.write([], is_openmetrics=False)
    assert not writer._written


def registry(families: Iterable[Family]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Reference(families))
    return registry


def samples(metrics: Iterable[metrics_core.Metric]) -> list[tuple[str, tuple[tuple[str, str], ...], float]]:
    return sorted(
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for metric in metrics
        for sample in metric.samples
    )


@given(families())
def test_text_has_the_samples_that_prometheus_client_writes(family: Family) -> None:
    ours = write([family]).decode()
    theirs = exposition.generate_latest(registry([family])).decode()
    assert samples(text_string_to_metric_families(ours)) == samples(text_string_to_metric_families(theirs))
    assert ours.splitlines()[:2] == theirs.splitlines()[:2]


@given(families())
def test_openmetrics_has_the_samples_that_prometheus_client_writes(family: Family) -> None:
    ours = write([family], is_openmetrics=True).decode()
    theirs = openmetrics.generate_latest(registry([family])).decode()  # type: ignore[no-untyped-call]
    parse = openmetrics_parser.text_string_to_metric_families
    assert samples(parse(ours)) == samples(parse(theirs))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("is_openmetrics", [False, True])
def test_every_metric_of_the_gateway_can_be_parsed(is_openmetrics: bool) -> None:
    accept = "application/openmetrics-text" if is_openmetrics else ""
    own = Metric("counter", "process_cpu_seconds", "Of the process.")
    text, _ = Exposition().render(Stats([("r", "u")], ["u"]), accept, [(own, (), 1.5)])
    parse = openmetrics_parser.text_string_to_metric_families if is_openmetrics else text_string_to_metric_families
    assert [metric.name for metric in parse(text.decode())] == [*METRICS, own.name]


def test_content_types_are_those_of_prometheus_client() -> None:
    assert TEXT_TYPE.startswith("text/plain; version=0.0.4")
    assert OPENMETRICS_TYPE.startswith("application/openmetrics-text; version=1.0.0")

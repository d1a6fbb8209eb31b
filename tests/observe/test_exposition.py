"""The text of /metrics is what prometheus_client would write, and what its parsers read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from gateway.errors import Outcome
from gateway.observe.exposition import OPENMETRICS_TYPE, TEXT_TYPE, Family, Kind, Writer
from gateway.observe.prometheus import collect
from gateway.observe.stats import CHUNK_BOUNDS, SECONDS_BOUNDS, Histogram, Stats

KINDS: list[Kind] = ["counter", "gauge", "histogram"]
#: Everything that must be escaped, and some of what must not.
TEXTS = st.text(alphabet='ab\\"\n{}=,%é ', max_size=8)
NUMBERS = st.one_of(st.integers(0, 2**53), st.floats(0, 1e15), st.just(math.inf))


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
    family = Family(kind, f"gateway_{kind}_{len(labels)}", "What it is.", labels)
    for values in draw(st.lists(st.tuples(*[TEXTS] * len(labels)), max_size=3, unique=True)):
        family.add(values, draw(histograms() if kind == "histogram" else NUMBERS))
    return family


class Reference:
    """A collector of prometheus_client with the same families."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        for family in self._families:
            if family.kind == "histogram":
                metric = HistogramMetricFamily(family.name, family.help, labels=family.labels)
                for values, number in family.rows:
                    assert isinstance(number, Histogram)
                    bounds = [*(str(bound) for bound in map(float, number.bounds)), "+Inf"]
                    buckets = [(bound, sum(number.counts[: place + 1])) for place, bound in enumerate(bounds)]
                    metric.add_metric(values, buckets, number.total)
                yield metric
                continue
            other = kinds[family.kind](family.name, family.help, labels=family.labels)
            for values, number in family.rows:
                assert isinstance(number, int | float)
                other.add_metric(values, number)
            yield other


COUNTERS = st.dictionaries(
    st.one_of(st.integers(200, 599), TEXTS, st.sampled_from(Outcome)), st.integers(0, 2**53), max_size=4
)


@given(
    st.lists(st.tuples(st.dictionaries(TEXTS, st.one_of(histograms([CHUNK_BOUNDS]), COUNTERS), max_size=3)), max_size=5)
)
def test_text_of_changed_numbers_is_that_of_a_new_writer(
    steps: list[tuple[dict[str, Histogram | dict[Any, Any]]]],
) -> None:
    """Blocks are kept from one text to the next: none may be that of other numbers or labels."""
    writer = Writer()
    for (values,) in steps:
        families = [
            Family("histogram", "gateway_a", "A.", ("route",)),
            Family("counter", "gateway_b", "B.", ("route", "code")),
        ]
        for route, value in values.items():
            families[isinstance(value, dict)].add((route,), value)
        text = writer.write(families, is_openmetrics=False)
        assert text == Writer().write(families, is_openmetrics=False)
        for value in values.values():
            # Counted on in place, as a gateway of one process does.
            if isinstance(value, dict):
                value.update(dict.fromkeys(value, 7))
            else:
                value.observe(5.0)
        assert writer.write(families, is_openmetrics=False) == Writer().write(families, is_openmetrics=False)


@given(st.dictionaries(st.tuples(TEXTS, st.integers(200, 599)), st.integers(0, 2**53), max_size=4), TEXTS)
def test_counters_of_a_dictionary_are_written_as_one_series_each(
    counters: dict[tuple[str, int], int], route: str
) -> None:
    labels = ("route", "method", "code")
    together, apart = (Family("counter", "gateway_a", "A.", labels) for _ in range(2))
    together.add((route,), counters)
    for (method, code), number in counters.items():
        apart.add((route, method, str(code)), number)
    assert Writer().write([together], is_openmetrics=False) == Writer().write([apart], is_openmetrics=False)


def test_block_whose_numbers_are_the_same_is_kept_and_that_of_an_ended_series_is_not() -> None:
    writer, histogram = Writer(), Histogram(SECONDS_BOUNDS)
    family = Family("histogram", "gateway_a", "A.", ("route",))
    for route in ("r", "s"):
        family.add((route,), histogram)
    writer.write([family], is_openmetrics=False)
    kept = writer._blocks["gateway_a", "r"]
    family.rows.pop()
    writer.write([family], is_openmetrics=True)
    assert writer._blocks == {("gateway_a", "r"): kept}
    assert writer._blocks["gateway_a", "r"] is kept


def registry(families: Iterable[Family]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Reference(families))
    return registry


def samples(metrics: Iterable[Metric]) -> list[tuple[str, tuple[tuple[str, str], ...], float]]:
    return sorted(
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for metric in metrics
        for sample in metric.samples
    )


@given(families())
def test_text_has_the_samples_that_prometheus_client_writes(family: Family) -> None:
    ours = Writer().write([family], is_openmetrics=False).decode()
    theirs = exposition.generate_latest(registry([family])).decode()
    assert samples(text_string_to_metric_families(ours)) == samples(text_string_to_metric_families(theirs))
    assert ours.splitlines()[:2] == theirs.splitlines()[:2]


@given(families())
def test_openmetrics_has_the_samples_that_prometheus_client_writes(family: Family) -> None:
    ours = Writer().write([family], is_openmetrics=True).decode()
    theirs = openmetrics.generate_latest(registry([family])).decode()  # type: ignore[no-untyped-call]
    parse = openmetrics_parser.text_string_to_metric_families
    assert samples(parse(ours)) == samples(parse(theirs))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("is_openmetrics", [False, True])
def test_every_metric_of_the_gateway_can_be_parsed(is_openmetrics: bool) -> None:
    all_families = list(collect(Stats([("r", "u")], ["u"])))
    text = Writer().write(all_families, is_openmetrics=is_openmetrics).decode()
    parse = openmetrics_parser.text_string_to_metric_families if is_openmetrics else text_string_to_metric_families
    assert {metric.name for metric in parse(text)} == {family.name for family in all_families}


def test_content_types_are_those_of_prometheus_client() -> None:
    assert TEXT_TYPE.startswith("text/plain; version=0.0.4")
    assert OPENMETRICS_TYPE.startswith("application/openmetrics-text; version=1.0.0")

"""The text of /metrics is what prometheus_client would write, and what its parsers read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from gateway.observe.exposition import OPENMETRICS_TYPE, TEXT_TYPE, Family, Kind, write_families
from gateway.observe.prometheus import collect
from gateway.observe.stats import CHUNK_BOUNDS, SECONDS_BOUNDS, Histogram, Stats

KINDS: list[Kind] = ["counter", "gauge", "histogram"]
#: Everything that must be escaped, and some of what must not.
TEXTS = st.text(alphabet='ab\\"\n{}=,é ', max_size=8)
NUMBERS = st.one_of(st.integers(0, 2**53), st.floats(0, 1e15), st.just(math.inf))


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    histogram = Histogram(draw(st.sampled_from([CHUNK_BOUNDS, SECONDS_BOUNDS])))
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
                assert not isinstance(number, Histogram)
                other.add_metric(values, number)
            yield other


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
    ours = write_families([family], is_openmetrics=False).decode()
    theirs = exposition.generate_latest(registry([family])).decode()
    assert samples(text_string_to_metric_families(ours)) == samples(text_string_to_metric_families(theirs))
    assert ours.splitlines()[:2] == theirs.splitlines()[:2]


@given(families())
def test_openmetrics_has_the_samples_that_prometheus_client_writes(family: Family) -> None:
    ours = write_families([family], is_openmetrics=True).decode()
    theirs = openmetrics.generate_latest(registry([family])).decode()  # type: ignore[no-untyped-call]
    parse = openmetrics_parser.text_string_to_metric_families
    assert samples(parse(ours)) == samples(parse(theirs))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("is_openmetrics", [False, True])
def test_every_metric_of_the_gateway_can_be_parsed(is_openmetrics: bool) -> None:
    all_families = list(collect(Stats([("r", "u")], ["u"])))
    text = write_families(all_families, is_openmetrics=is_openmetrics).decode()
    parse = openmetrics_parser.text_string_to_metric_families if is_openmetrics else text_string_to_metric_families
    assert {metric.name for metric in parse(text)} == {family.name for family in all_families}


def test_content_types_are_those_of_prometheus_client() -> None:
    assert TEXT_TYPE.startswith("text/plain; version=0.0.4")
    assert OPENMETRICS_TYPE.startswith("application/openmetrics-text; version=1.0.0")

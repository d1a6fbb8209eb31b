"""Statistics as plain numbers: histograms, and labels that a client cannot invent."""

from __future__ import annotations

from gateway.observe.stats import Histogram, Stats, method_label


def test_histogram_counts_into_the_right_bucket() -> None:
    histogram = Histogram((1, 2, 4))
    for value in (0.5, 1, 1.5, 4, 5):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 1, 1]
    assert histogram.total == 12


def test_client_cannot_create_a_method_label() -> None:
    assert method_label("GET") == "GET"
    assert method_label("BREW") == "other"
    assert Stats.NO_ROUTE in Stats([], []).routes

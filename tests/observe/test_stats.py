"""Statistics as plain numbers: histograms, and labels that a client cannot invent."""

from __future__ import annotations

from gateway.observe.stats import Histogram, RouteStats, Stats


def test_histogram_counts_into_the_right_bucket() -> None:
    histogram = Histogram((1, 2, 4))
    for value in (0.5, 1, 1.5, 4, 5):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 1, 1]
    assert histogram.total == 12


def test_client_cannot_create_a_method_label() -> None:
    stats = RouteStats("r")
    stats.count_exchange("GET", 200, 0.1, 0.05)
    stats.count_exchange("BREW", 418, 0.2, None)
    stats.count_exchange("WHEN", 418, 0.2, None)
    assert stats.requests == {("GET", 200): 1, ("other", 418): 2}
    assert (sum(stats.durations.counts), sum(stats.first_bytes.counts)) == (3, 1)
    assert Stats.NO_ROUTE in Stats([], []).routes

"""What the hot path counts, beside what the library would have shown."""

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from undercroft.telemetry.tallies import Distributions

BOUNDS = (0.0005, 0.25, 1, 10)


def lines(registry: CollectorRegistry) -> list[str]:
    """What is scraped, but for the time at which the library's own series began."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_a_distribution_is_shown_as_a_histogram_of_the_library() -> None:
    expected, found = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("waits_seconds", "How long", ("buffer",), buckets=BOUNDS, registry=expected)
    distributions = Distributions("waits_seconds", "How long", "buffer", ["a", "b"], BOUNDS)
    found.register(distributions)
    histogram.labels("b")
    for value in (0.0, 0.0005, 0.0006, 0.25, 1, 9.75, 10, 10.5, 1_000):
        histogram.labels("a").observe(value)
        distributions.by_value["a"].add(value)
    assert sorted(lines(found)) == sorted(lines(expected))
    assert 'waits_seconds_bucket{buffer="a",le="0.25"} 4.0' in lines(found)

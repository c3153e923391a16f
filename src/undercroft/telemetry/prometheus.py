"""The registry of Prometheus series and how it is rendered.

Names that start with `tuist_cache_` or `cache_` are those of dashboards that exist already and stay
as they are; new ones start with `undercroft_`. Every series is there from the first scrape. Nothing
but events and the parts' own figures feeds them.
"""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from undercroft.telemetry.tallies import Tallies

Labels: TypeAlias = tuple[tuple[str, str], ...]


class Prometheus:
    """A registry of its own for each node."""

    def __init__(self) -> None:
        # A second series per counter with its creation time: nobody's dashboard has it.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it
        self.registry = CollectorRegistry()
        self.sums = Sums()
        self.tallies = Tallies()
        self.registry.register(self.sums)
        self.registry.register(self.tallies)

    def render(self) -> tuple[bytes, str]:
        """All series in the text format 0.0.4, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4


class Sums(Collector):
    """Sums under established names that lack the `_total` the library insists on for counters."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._series: dict[str, dict[Labels, float]] = {}

    def declare(self, name: str, text: str, labels: Mapping[str, str] | None = None) -> None:
        """Makes a series visible with the value 0."""
        self._texts[name] = text
        self._series.setdefault(name, {})[_frozen(labels)] = 0.0

    def add(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Adds to a declared name."""
        series, key = self._series[name], _frozen(labels)
        series[key] = series.get(key, 0.0) + value

    def collect(self) -> Iterable[Metric]:
        """All sums, untyped: the name stays as it is, and `rate` works."""
        for name, series in self._series.items():
            metric = Metric(name, self._texts[name], "unknown")
            for labels, value in series.items():
                metric.add_sample(name, dict(labels), value)
            yield metric


def _frozen(labels: Mapping[str, str] | None) -> Labels:
    return tuple(labels.items()) if labels else ()

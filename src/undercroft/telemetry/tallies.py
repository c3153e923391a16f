"""Counters for the hot path: an addition to a number instead of a lock and three calls."""

from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class Tally:
    """One series. Only the event loop adds to it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1) -> None:
        """Counts."""
        self.value += amount


class Tallies(Collector):
    """Counters by name and labels, shown from the first scrape on."""

    def __init__(self) -> None:
        self._texts: dict[str, tuple[str, Sequence[str]]] = {}
        self._series: dict[str, dict[tuple[str, ...], Tally]] = {}

    def declare(self, name: str, text: str, labels: Sequence[str] = (), values: Sequence[str] = ()) -> Tally:
        """The series `name` (without `_total`) with these labels; the same one when asked again."""
        self._texts[name] = (text, labels)
        return self._series.setdefault(name, {}).setdefault(tuple(values), Tally())

    def collect(self) -> Iterable[Metric]:
        """All counters."""
        for name, series in self._series.items():
            text, labels = self._texts[name]
            family = CounterMetricFamily(name, text, labels=labels)
            for values, tally in series.items():
                family.add_metric(values, tally.value)
            yield family

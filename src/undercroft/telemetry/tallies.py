"""Series for the hot path: an addition to a number instead of a lock and three calls."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
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


class Distribution:
    """One histogram. Only the event loop adds to it."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` are the upper ones of all buckets but the last; what equals one is in its bucket."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Counts a value in its bucket."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def shown(self) -> tuple[list[tuple[str, float]], float]:
        """Each bound with how many values are no larger, and the sum of all."""
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True)), self._sum


class Distributions(Collector):
    """A histogram by one label, shown from the first scrape on."""

    def __init__(
        self, name: str, text: str, label: str, values: Iterable[str], bounds: Sequence[float]
    ) -> None:
        self._name, self._text, self._label = name, text, label
        self.by_value = {value: Distribution(bounds) for value in values}

    def collect(self) -> Iterable[Metric]:
        """The one family."""
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        for value, distribution in self.by_value.items():
            family.add_metric([value], *distribution.shown())
        yield family

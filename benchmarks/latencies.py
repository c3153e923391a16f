"""Percentiles, medians and spreads: the arithmetic of all tables."""

import math
import statistics
from collections.abc import Sequence

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
NAMES = ("p50", "p90", "p99", "p99.9", "max")


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all are not above; `ordered` ascends and is not empty.

    The nearest-rank method: always a value that was measured, so that p99.9 of a hundred is their largest.
    """
    rank = math.ceil(len(ordered) * percent / 100)
    return ordered[max(0, min(len(ordered), rank) - 1)]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Percentiles and the largest by name, none of no values."""
    if not values:
        return {}
    ordered = sorted(values)
    found = [percentile(ordered, percent) for percent in PERCENTILES]
    return dict(zip(NAMES, [*found, ordered[-1]], strict=True))


def spread(values: Sequence[float]) -> float:
    """Half the distance between the smallest and the largest, as a share of the median."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / 2 / middle if middle else 0.0


def ratio(value: float, base: float) -> float:
    """How many times the base; 0 of nothing."""
    return value / base if base else 0.0


def with_spread(values: Sequence[float], digits: int = 0) -> str:
    """The median, and after several rounds how far they lie apart: `12,345 ±4%`."""
    shown = f"{statistics.median(values):,.{digits}f}"
    return f"{shown} ±{spread(values):.0%}" if len(values) > 1 else shown

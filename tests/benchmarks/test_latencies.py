"""The arithmetic of the tables."""

import pytest

from benchmarks.latencies import percentile, ratio, spread, summary, with_spread


@pytest.mark.parametrize(
    ("count", "percent", "expected"),
    [
        (1, 50, 1),
        (1, 99.9, 1),
        (2, 50, 1),
        (100, 50, 50),
        (100, 99, 99),
        (100, 99.9, 100),
        (1_000, 99.9, 999),
    ],
)
def test_a_percentile_is_the_smallest_value_that_so_many_are_not_above(
    count: int, percent: float, expected: float
) -> None:
    assert percentile([float(n) for n in range(1, count + 1)], percent) == expected


def test_a_summary_does_not_care_for_the_order() -> None:
    found = summary([5.0, 1.0, 4.0, 2.0, 3.0])
    assert found == {"p50": 3.0, "p90": 5.0, "p99": 5.0, "p99.9": 5.0, "max": 5.0}


def test_nothing_has_no_percentiles() -> None:
    assert summary([]) == {}


def test_spread_is_half_the_distance_as_a_share_of_the_median() -> None:
    assert spread([90, 100, 130]) == pytest.approx(0.2)
    assert spread([0, 0]) == 0


def test_one_round_has_no_spread() -> None:
    assert with_spread([1_234.5]) == "1,234"
    assert with_spread([90, 100, 130]) == "100 ±20%"


def test_a_ratio_to_nothing_is_nothing() -> None:
    assert ratio(3, 2) == 1.5
    assert ratio(3, 0) == 0

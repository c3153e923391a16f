"""What benchmarks make of their rounds."""

from typing import Any

import pytest

from benchmarks import growth, memory, mixed, start
from benchmarks.loading import cpu_s_per_thousand, failed_share


def figures(rate: float, p99: float, *, errors: int = 0, **more: Any) -> dict[str, Any]:
    one = {"count": 100, "p50": 1.0, "p90": 2.0, "p99": p99, "p99.9": 3 * p99, "max": 4 * p99}
    return {
        "rate": rate,
        "seconds": 2.0,
        "bytes": 10_000_000,
        "load_share": 0.25,
        "all": one,
        "kinds": {"fetch module": one, "miss": one},
        "late": {"p99": 0.5},
        "errors": {"wrong body": errors} if errors else {},
        "cpu_s": 0.05,
        **more,
    }


def rounds_of(*rates: float) -> list[dict[str, Any]]:
    return [
        {"closed": figures(rate, 9), "50": figures(rate / 2, 5 * number, asked=rate / 2)}
        for number, rate in enumerate(rates, start=1)
    ]


def test_the_most_is_a_median_with_a_spread_and_a_ratio_to_the_first_server() -> None:
    table = mixed.most({"node": rounds_of(100, 110, 120), "nginx": rounds_of(220)})
    assert table["rows"] == [
        ["node", "110 ±9%", "1.00", "5 ±0%", "0.500 ±0%", "25%", "0.00%"],
        ["nginx", "220", "2.00", "5", "0.500", "25%", "0.00%"],
    ]


def test_latencies_are_medians_and_the_longest_of_all_rounds() -> None:
    table = mixed.latency({"node": rounds_of(100, 110, 120)})
    assert table["rows"] == [["node, 50 %", "55", "1.00", "2.00", "10.00", "30.00", "60", "0.50", "0.00%"]]


def test_kinds_are_shown_with_how_often_they_came() -> None:
    table = mixed.by_kind({"node": rounds_of(100, 110)})
    assert [row[:2] for row in table["rows"]] == [["fetch module", "200"], ["miss", "200"]]


def test_failed_requests_are_a_share_of_all_and_cost_time_too() -> None:
    found = figures(10, 1, errors=300)
    assert failed_share(found) == 0.75
    assert cpu_s_per_thousand(found) == pytest.approx(0.05 / 400 * 1_000)
    assert cpu_s_per_thousand({**found, "cpu_s": None}) is None


def test_growth_is_the_last_quarter_against_the_second() -> None:
    course = memory.Course("node", list(range(8)), [1, 50, 100, 100, 105, 105, 110, 110])
    assert course.growth() == pytest.approx(1.1)


def test_a_start_is_a_share_of_what_it_may_take() -> None:
    assert start.excess({0: [2.0], 5_000_000: [4.0]}) == 1
    assert start.excess({0: [2.0], 5_000_000: [2.0]}) == 0.5


def test_the_start_goal_needs_the_largest_table() -> None:
    assert start.SIZES[0] == 0
    assert start.SIZES[-1] == 5_000_000


def test_keys_of_a_grown_table_are_spread_over_all_there_are() -> None:
    assert 0 < (growth.step(10_000_000) * 9_999_999) < 1 << 32
    assert growth.step(10_000) * 9_999 > 0.99 * (1 << 32)

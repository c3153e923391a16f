"""What benchmarks make of their rounds."""

from typing import Any

import pytest

from benchmarks import growth, memory, mixed, start
from benchmarks.form import Form
from benchmarks.loading import Order, Target, cpu_s_per_thousand, failed_share, place_of
from benchmarks.traffic import Mix


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


def at(rate: float, *latencies: float) -> list[dict[str, Any]]:
    return [{mixed.COMMON: figures(rate, p99, asked=rate)} for p99 in latencies]


def test_at_one_rate_latencies_are_ratios_to_nginx() -> None:
    table = mixed.at_one_rate({"node": at(40, 10, 30), "nginx, bazel": at(40, 5, 5)})
    assert table["rows"] == [
        ["node", "1.00 ±0%", "1.00", "20.00 ±50%", "4.00", "120", "0.50", "0.00%"],
        ["nginx, bazel", "1.00 ±0%", "1.00", "5.00 ±0%", "1.00", "20", "0.50", "0.00%"],
    ]
    assert table["notes"][0].startswith("All are asked for 40 look-ups a second")
    (row,) = mixed.at_one_rate({"node": at(40, 10)})["rows"]
    assert row[2] == row[4] == "-"


def test_the_one_rate_is_half_the_most_of_the_slowest_in_the_first_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = {"node": [300.0, 100.0], "nginx": [400.0, 400.0]}
    asked: list[float] = []

    def load(target: Target, order: Order) -> dict[str, Any]:
        if order.what == "closed":
            return figures(most[target.name][int(order.seed[-1])], 1)
        if mixed.COMMON in order.seed:
            asked.append(order.rate)
        return figures(order.rate, 1)

    monkeypatch.setattr(mixed, "load", load)
    targets = [Target(name, place_of("http://127.0.0.1:1", "static")) for name in most]
    rounds = mixed.measure_all(targets, Mix(), Form(quick=True, rounds=2, seconds=1, workers=(1,)))
    # By the figures there are two look-ups to each answer; the second round of the node counts for nothing.
    assert asked == [300, 300, 300, 300]
    assert [mixed.shares_of(many) for many in rounds.values()] == [["50"], ["50"]]


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


def test_what_a_million_events_leave_is_told_with_and_without_sqlite() -> None:
    left = memory.Left([80, 160, 168], [0, 64, 64])
    found = left.figures()
    assert found == {"events_left": 2, "events_growth": 1.05}
    (*_, table) = memory.tables([], {}, left)
    assert [row[1:] for row in table["rows"]] == [["80", "160", "168"], ["0", "64", "64"]]


def test_a_start_is_a_share_of_what_it_may_take() -> None:
    assert start.excess({0: [2.0], 5_000_000: [4.0]}) == 1
    assert start.excess({0: [2.0], 5_000_000: [2.0]}) == 0.5


def test_the_start_goal_needs_the_largest_table() -> None:
    assert start.SIZES[0] == 0
    assert start.SIZES[-1] == 5_000_000


def test_keys_of_a_grown_table_are_spread_over_all_there_are() -> None:
    assert 0 < (growth.step(10_000_000) * 9_999_999) < 1 << 32
    assert growth.step(10_000) * 9_999 > 0.99 * (1 << 32)

"""The page that is made of the result files."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import page, plots, report
from benchmarks.goals import GOALS, Goal
from benchmarks.sections import SECTIONS

GOAL = Goal("mixed", "share", "a share", ">=", 0.5, "x", "because")
LINES = {"node": ([1, 4, 16], [10.0, 20.0, 35.5]), "nginx": ([1, 4, 16], [100.0, 200.0, 355.0])}


def plot(name: str = "one") -> dict[str, Any]:
    return report.plot(name, "A title", "connections", "requests per second", LINES, x_log=True)


def result(**more: Any) -> dict[str, Any]:
    tables = [report.table("A table", ["case", "rate"], [["first", "1"]], "A note.")]
    return {"figures": {}, "tables": tables, "machine": {"cpus": 2}, "versions": {"python": "3"}, **more}


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0.5, "reached"), (0.4, "missed by 20%: because"), (None, "not measured")],
)
def test_a_goal_is_reached_or_missed_with_a_reason_or_not_measured(
    monkeypatch: pytest.MonkeyPatch, value: float | None, verdict: str
) -> None:
    monkeypatch.setattr(page, "GOALS", (GOAL,))
    figures = {} if value is None else {"share": value}
    _, row = page.goal_rows({"mixed": {"figures": figures}})
    assert row[-1] == verdict


def test_an_upper_limit_is_missed_above_it() -> None:
    goal = Goal("mixed", "share", "a share", "<=", 10, "ms", "because")
    assert goal.reached(10)
    assert not goal.reached(12)
    assert goal.miss(12) == "20%"


def test_every_goal_looks_at_a_benchmark_there_is() -> None:
    assert {goal.benchmark for goal in GOALS} <= set(command.NEEDS)
    assert set(SECTIONS) == set(command.NEEDS)


def test_every_benchmark_there_is_gets_run() -> None:
    folder = Path(command.__file__).parent
    programs = {path.stem for path in folder.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    assert programs - {"__main__", "generator", "page"} == set(command.NEEDS)


def test_the_page_has_a_section_for_each_result_in_the_order_of_sections() -> None:
    text = page.content({"start": result(), "mixed": result(plots=[plot()])}, "images")
    mixed, start = (text.index(f"## {SECTIONS[name][0]}") for name in ("mixed", "start"))
    assert mixed < start
    assert f"## {SECTIONS['growth'][0]}" not in text
    assert "| case | rate |\n| --- | ---: |\n| first | 1 |\n\nA note." in text
    assert "](images/one.svg)" in text


def test_a_plot_tells_those_who_do_not_see_it_where_its_lines_go() -> None:
    assert page.alternative(plot()) == (
        "A title; requests per second over connections: node from 10 at 1 to 35.5 at 16; "
        "nginx from 100 at 1 to 355 at 16"
    )


def test_a_plot_is_a_small_file_and_the_same_one_each_time(tmp_path: Path) -> None:
    first = plots.draw(plot(), tmp_path).read_bytes()
    assert first == plots.draw(plot(), tmp_path).read_bytes()
    assert len(first) < 40_000
    text = first.decode()
    # Text is text, and there is no background: the page shines through in both themes.
    assert "requests per second" in text
    assert ">node<" in text
    assert "#ffffff" not in text


def test_drawing_removes_what_nobody_draws_any_more(tmp_path: Path) -> None:
    (tmp_path / "old.svg").write_text("")
    page.draw_all({"mixed": {"plots": [plot("new")]}}, tmp_path)
    assert [path.name for path in tmp_path.glob("*.svg")] == ["new.svg"]


def test_a_short_form_leaves_the_results_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = report.write_result("mixed", quick=True, figures={"share": 1})
    assert written == tmp_path / ".benchmark-quick" / "mixed.json"
    assert json.loads(written.read_text())["figures"] == {"share": 1}
    assert page.write_page(quick=True) == written.with_name("performance.md")


def test_the_page_in_the_repository_is_made_of_the_results_in_it() -> None:
    results = report.read_results(report.RESULTS)
    images = report.IMAGES.relative_to(report.PAGE.parent).as_posix()
    assert report.PAGE.read_text() == page.content(results, images)
    named = {plot["name"] for result in results.values() for plot in result.get("plots", ())}
    assert {path.stem for path in report.IMAGES.glob("*.svg")} == named


def test_a_benchmark_is_done_when_its_result_is_of_this_very_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "results_folder", lambda: tmp_path)
    (tmp_path / "mixed.json").write_text(json.dumps({"commit": "abc"}))
    for now, done in (("abc", True), ("def", False), ("abc+", False), ("", False)):
        monkeypatch.setattr(command, "commit", lambda now=now: now)
        assert command.done_already("mixed") is done
    assert not command.done_already("start")

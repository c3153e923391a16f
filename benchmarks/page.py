"""`docs/performance.md`, made of the result files: goals, tables, plots, and how all of it was measured.

`python -m benchmarks.page` makes it anew without measuring.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.goals import GOALS, Goal
from benchmarks.report import IMAGES, PAGE, Table, markdown, read_results, results_folder, table
from benchmarks.sections import ASSUMPTIONS, DISK, INTRODUCTION, OTHER_SERVERS, SECTIONS


def write_page(*, quick: bool = False) -> Path:
    """Writes the page and its images; those of short forms beside their results."""
    folder = results_folder(quick=quick)
    page, images = (folder / PAGE.name, folder / "images") if quick else (PAGE, IMAGES)
    images.mkdir(parents=True, exist_ok=True)
    results = read_results(folder)
    draw_all(results, images)
    page.write_text(content(results, images.relative_to(page.parent).as_posix()))
    return page


def main() -> None:
    """Writes the page anew from the results there are."""
    print(f"written: {write_page()}")


def draw_all(results: Mapping[str, Mapping[str, Any]], images: Path) -> None:
    """Draws every plot, and removes what nobody draws any more."""
    drawn = {plots.draw(plot, images) for result in results.values() for plot in result.get("plots", ())}
    for old in set(images.glob("*.svg")) - drawn:
        old.unlink()


def content(results: Mapping[str, Mapping[str, Any]], images: str) -> str:
    """The text of the page; `images` is where they are from there."""
    parts = [INTRODUCTION, "## Goals", markdown(goal_rows(results))]
    for name, (title, what) in SECTIONS.items():
        if name in results:
            parts += [f"## {title}", what, *_section(results[name], images)]
    parts += [ASSUMPTIONS, OTHER_SERVERS, "## On what", DISK, _circumstances(results)]
    return "\n\n".join(parts) + "\n"


def goal_rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Each goal with what was measured."""
    head = ["figure", "measured", "goal", "reached"]
    return [head, *(_goal_row(goal, results.get(goal.benchmark, {}).get("figures", {})) for goal in GOALS)]


def _goal_row(goal: Goal, figures: Mapping[str, float]) -> list[str]:
    wanted = f"{goal.sense} {goal.limit:g} {goal.unit}"
    value = figures.get(goal.figure)
    if value is None:
        return [goal.title, "-", wanted, "not measured"]
    verdict = "reached" if goal.reached(value) else f"missed by {goal.miss(value)}: {goal.why}"
    return [goal.title, f"{value:.2f} {goal.unit}", wanted, verdict]


def _section(result: Mapping[str, Any], images: str) -> list[str]:
    parts = []
    for shown in result.get("tables", tables_of_http_servers(result)):
        parts += [f"**{shown['title']}**", markdown([shown["head"], *shown["rows"]]), *shown["notes"]]
    for plot in result.get("plots", ()):
        parts.append(f"![{alternative(plot)}]({images}/{plot['name']}.svg)")
    return parts


def alternative(plot: Mapping[str, Any]) -> str:
    """What a plot shows, for who does not see it: where each line begins and ends."""
    lines = (
        f"{line['name']} from {line['y'][0]:,.4g} at {line['x'][0]:,.4g} "
        f"to {line['y'][-1]:,.4g} at {line['x'][-1]:,.4g}"
        for line in plot["lines"]
        if line["x"]
    )
    return f"{plot['title']}; {plot['y']} over {plot['x']}: {'; '.join(lines)}"


def _circumstances(results: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["benchmark", "date", "commit", "machine", "parameters"]
    rows = [
        [
            name,
            result.get("date", ""),
            result.get("commit", "") or "-",
            _listed(result.get("machine", {})),
            _listed(result.get("parameters", result.get("setup", {}))),
        ]
        for name, result in results.items()
    ]
    versions: dict[str, str] = {}
    for result in results.values():
        versions |= result.get("versions", {})
    return f"{markdown([head, *rows])}\n\nVersions: {_listed(versions)}."


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def tables_of_http_servers(result: Mapping[str, Any]) -> list[Table]:
    """`http_servers` keeps medians by case and server; this shows them with their ratios."""
    return [
        _table_of_medians(title, result[field])
        for field, title in (("rate", "requests/s"), ("cpu_us", "CPU microseconds per request"))
        if field in result
    ]


def _table_of_medians(title: str, part: Mapping[str, Any]) -> Table:
    medians, ratios = part["medians"], part["ratios_to_uvicorn"]
    servers: Sequence[str] = list(dict.fromkeys(server for row in medians.values() for server in row))
    rows = [[case, *(_cell(medians[case], ratios.get(case, {}), s) for s in servers)] for case in medians]
    return table(f"{title} (ratio to uvicorn)", ["case", *servers], rows)


def _cell(medians: Mapping[str, float], ratios: Mapping[str, float], server: str) -> str:
    if server not in medians:
        return "-"
    ratio = f" ({ratios[server]:.2f}x)" if server in ratios else ""
    return f"{medians[server]:,.0f}{ratio}"


if __name__ == "__main__":
    main()

"""Plots for the page: small SVG files that can be read on a white page and on a black one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Grey has contrast enough on white and on black; the page shines through.
INK = "#808890"
COLOURS = ("#2f81f7", "#d29922", "#3fa34d", "#db61a2", "#a371f7", "#e5534b")
MARKERS = "os^Dv*"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small files, and it can be searched
    "svg.hashsalt": "undercroft",  # the same figures make the same file
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(plot: Mapping[str, Any], folder: Path) -> Path:
    """Draws what `report.plot` has described; answers the file."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for number, line in enumerate(plot["lines"]):
            style: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "markersize": 5}
            if len(line["x"]) > 20:
                style = {}
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(line["x"], line["y"], label=line["name"], color=colour, linewidth=1.8, **style)
        _scale(axes, plot)
        axes.set_title(plot["title"], color=INK, fontsize=11)
        axes.set_xlabel(plot["x"])
        axes.set_ylabel(plot["y"])
        axes.grid(visible=True, color=INK, alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False, labelcolor=INK)
        path = folder / f"{plot['name']}.svg"
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    return path


def _scale(axes: Any, plot: Mapping[str, Any]) -> None:
    plain = FuncFormatter(lambda value, _position: _short(value))
    for log, axis, name in ((plot["x_log"], axes.xaxis, "x"), (plot["y_log"], axes.yaxis, "y")):
        if log:
            (axes.set_xscale if name == "x" else axes.set_yscale)("log")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(plain)
    if plot["x_log"]:
        places = sorted({x for line in plot["lines"] for x in line["x"]})
        if len(places) <= 10:
            axes.set_xticks(places)
            axes.minorticks_off()
    if not plot["y_log"]:
        axes.set_ylim(bottom=0)


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"

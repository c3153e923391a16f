"""Result files, one per benchmark: tables and plots for people, figures for goals, and every round."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw

from benchmarks.workspaces import chosen_folder, file_system

RESULTS = Path(__file__).parent / "results"
LIBRARIES = (
    "aiosqlite",
    "apsw",
    "diskcache",
    "granian",
    "httptools",
    "msgspec",
    "peewee",
    "sqlalchemy",
    "uvicorn",
    "uvloop",
)

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/performance.md"
IMAGES = ROOT / "docs/images/performance"
QUICK_FOLDER = ".benchmark-quick"
"""In the working directory: results of short forms, which nobody should keep."""

Table = Mapping[str, Any]
"""What a benchmark wants shown: `title`, `head`, `rows` of cells, `notes`."""


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], *notes: str) -> dict[str, Any]:
    """A table for the README; the first column is text, the others figures."""
    return {"title": title, "head": list(head), "rows": [list(row) for row in rows], "notes": list(notes)}


def circumstances() -> dict[str, Any]:
    """Machine and versions, without which no figure means anything."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": {
            "cpus": os.cpu_count(),
            "arch": platform.machine(),
            "kernel": platform.release(),
            "disk": file_system(chosen_folder()),
            "load": round(os.getloadavg()[0], 2),
            "switch_interval_ms": sys.getswitchinterval() * 1_000,
        },
        "versions": {
            "python": platform.python_version(),
            "sqlite of apsw": apsw.sqlite_lib_version(),
            "sqlite of sqlite3": sqlite3.sqlite_version,
            **{name: version for name in LIBRARIES if (version := _version(name))},
            **_nginx(),
        },
    }


def commit() -> str:
    """The last one that changed what is measured, with a `+` if it is changed since; empty without git."""
    code = ("--", "src", "benchmarks", ":!benchmarks/results")
    last = _git("log", "-1", "--format=%h", *code)
    return f"{last}+" if _git("status", "--porcelain", *code) else last


def _git(*arguments: str) -> str:
    with contextlib.suppress(OSError):
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def _nginx() -> dict[str, str]:
    with contextlib.suppress(OSError):
        shown = subprocess.run(["nginx", "-v"], check=True, capture_output=True, text=True).stderr
        return {"nginx": shown.strip().rpartition("/")[2]}
    return {}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def plot(
    name: str,
    title: str,
    x: str,
    y: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_log: bool = False,
    y_log: bool = False,
) -> dict[str, Any]:
    """A plot for the page; `lines` by their name, each the places on `x` and the values on `y`."""
    drawn = [{"name": line, "x": list(xs), "y": list(ys)} for line, (xs, ys) in lines.items()]
    return {"name": name, "title": title, "x": x, "y": y, "x_log": x_log, "y_log": y_log, "lines": drawn}


def results_folder(*, quick: bool = False) -> Path:
    """Where result files are."""
    return Path.cwd() / QUICK_FOLDER if quick else RESULTS


def write_result(name: str, *, quick: bool = False, **content: Any) -> Path:
    """Writes the result file of a benchmark.

    `figures` are what goals look at, `tables` and `plots` what people do, `rounds` what was measured.
    """
    folder = results_folder(quick=quick)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"benchmark": name, **circumstances(), **content}, indent=1) + "\n")
    return path


def show(tables: Iterable[Table]) -> None:
    """Prints tables."""
    for one in tables:
        print(f"\n{one['title']}\n\n{markdown([one['head'], *one['rows']])}", flush=True)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """All result files of a folder, by name of the benchmark."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head, all columns but the first are aligned right."""
    head, *body = rows
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])

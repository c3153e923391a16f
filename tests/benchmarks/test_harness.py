"""The benchmarks run at all, in their short form. What they measure here is worth nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.servers import node
from tests.clients.installed import require

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.system


def run(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_mixed_benchmark_runs_and_makes_a_page(tmp_path: Path) -> None:
    require("nginx", "nginx-light")
    require("wrk", "wrk")
    run(tmp_path, "benchmarks", "--quick", "mixed")
    folder = tmp_path / ".benchmark-quick"
    result = json.loads((folder / "mixed.json").read_text())
    for rounds in result["rounds"].values():
        for measured in rounds[0].values():
            assert measured["errors"] == {}
            assert measured["all"]["count"] > 0
    assert result["figures"]["mixed_rate"] > 0
    text = (folder / "performance.md").read_text()
    assert "## Mixed traffic" in text
    assert "](images/mixed-p99.svg)" in text
    assert (folder / "images/mixed-p99.svg").exists()
    # Nothing is left behind but the results.
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_other_servers_are_measured_by_their_urls_beside_the_node(tmp_path: Path) -> None:
    require("nginx", "nginx-light")
    with node(tmp_path / "data") as server:
        urls = {dialect: f"{server.url}/{dialect}/acme/app" for dialect in ("bazel", "webdav")}
        arguments = [f"--{a}" for dialect, url in urls.items() for a in (f"url={url}", f"dialect={dialect}")]
        printed = run(tmp_path, "benchmarks.mixed", "--quick", *arguments)
    tables = [part.split("\n\n")[1].splitlines() for part in printed.split("The most there is")[1:]]
    rows = [row for _, _, *body in tables for row in body]
    assert all(row.endswith("| 0.00% |") for row in rows)
    most = [row.split(" | ")[0] for row in rows]
    assert most == [
        f"| {name}, {dialect}" for dialect, url in urls.items() for name in ("node", "nginx", url)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_artifacts_are_measured_from_any_directory_and_only_whole_results_are_kept(tmp_path: Path) -> None:
    printed = run(tmp_path, "benchmarks.artifacts", "--quick", "--only", "read 4k x1")
    assert "| read 4k x16 |" in printed
    assert list(tmp_path.iterdir()) == []

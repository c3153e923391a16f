"""A data directory of every released version opens and has lost nothing; a newer one is left alone."""

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import apsw
import pytest

import undercroft
from tests.support.node_process import node_process
from tests.system.client import Client

DATA_DIRS = Path(__file__).parent / "data_dirs"
VERSIONS = ["0.1.0", "0.2.0", "0.3.0"]
"""Those released; `scripts/make-data-dir` makes another."""


def unpack(version: str, folder: Path) -> dict[str, str]:
    """The data directory of a version goes to `folder/data`; what its node served is answered."""
    with tarfile.open(DATA_DIRS / f"{version}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    served: dict[str, str] = json.loads((folder / "served.json").read_text())
    return served


def check_served(url: str, served: dict[str, str]) -> None:
    with Client(url) as client:
        for path, body in served.items():
            assert client.get_bytes(path) == body.encode(), path


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_lost(version: str, workers: int, tmp_path: Path) -> None:
    served = unpack(version, tmp_path)
    assert len(served) >= 55
    for _ in range(2):  # as it is migrated, and as it is afterwards
        with node_process(tmp_path / "data", arguments=("--workers", str(workers))) as node:
            check_served(node.url, served)
            assert node.stop() == 0
            assert node.logged("artifact_damaged") == node.logged("request_failed") == []


def test_every_version_that_was_released_is_here() -> None:
    released = [path.name.removesuffix(".tar.xz") for path in DATA_DIRS.glob("*.tar.xz")]
    assert sorted(released) == VERSIONS
    changelog = (DATA_DIRS.parents[2] / "CHANGELOG.md").read_text()
    for line in changelog.splitlines():
        if line.startswith("## ") and line not in ("## Unreleased", f"## {undercroft.__version__}"):
            assert line.removeprefix("## ") in VERSIONS


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("database", ["node.sqlite", "key_values.sqlite"])
def test_a_newer_version_is_left_as_it_is(database: str, tmp_path: Path) -> None:
    unpack(VERSIONS[-1], tmp_path)
    connection = apsw.Connection(str(tmp_path / "data" / database))
    connection.pragma("user_version", 1_000)
    connection.close()
    before = digests(tmp_path / "data")
    command = [
        sys.executable,
        "-m",
        "undercroft",
        "serve",
        "--data-dir",
        str(tmp_path / "data"),
        "--port",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"{database} has schema version 1000" in done.stderr
    assert "run the newer Undercroft that wrote it" in done.stderr
    after = digests(tmp_path / "data")
    assert {name: after[name] for name in before} == before

"""A data directory of every released version opens and has lost nothing; a newer one is left alone."""

import subprocess
import sys
from pathlib import Path

import apsw
import pytest

import undercroft
from tests.support.campaign import Campaign
from tests.support.node_process import node_process
from tests.system.client import Client
from tests.system.data_dir import snapshot
from tests.system.data_dirs.archives import FOLDER, VERSIONS, settings, unpack
from tests.system.data_dirs.entries import Caller
from tests.system.data_dirs.left import Left


def check_served(url: str, left: Left, campaign: Campaign) -> None:
    with Client(url) as client:
        main = Caller(client, left.tokens.get("main"))
        for path, body in left.readable.items():
            assert main.get(path) == body.encode(), path
            campaign.checked("entries")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_lost(version: str, workers: int, tmp_path: Path, campaign: Campaign) -> None:
    left = unpack(version, tmp_path)
    assert len(left.readable) >= 55
    for _ in range(2):  # as it is migrated, and as it is afterwards
        arguments = ("--workers", str(workers))
        with node_process(tmp_path / "data", settings(left), arguments=arguments) as node:
            check_served(node.url, left, campaign)
            assert node.stop() == 0
            assert node.logged("artifact_damaged") == node.logged("request_failed") == []
        campaign.ran()


def test_every_version_that_was_released_is_here() -> None:
    released = [path.name.removesuffix(".tar.xz") for path in FOLDER.glob("*.tar.xz")]
    assert sorted(released) == VERSIONS
    changelog = (FOLDER.parents[2] / "CHANGELOG.md").read_text()
    for line in changelog.splitlines():
        if line.startswith("## ") and line not in ("## Unreleased", f"## {undercroft.__version__}"):
            assert line.removeprefix("## ") in VERSIONS


@pytest.mark.parametrize("database", ["node.sqlite", "key_values.sqlite"])
def test_a_newer_version_is_left_as_it_is(database: str, tmp_path: Path) -> None:
    unpack(VERSIONS[-1], tmp_path)
    connection = apsw.Connection(str(tmp_path / "data" / database))
    connection.pragma("user_version", 1_000)
    connection.close()
    before = snapshot(tmp_path / "data")
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
    assert snapshot(tmp_path / "data") == before

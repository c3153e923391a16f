"""`undercroft evict`, beside a running node and without one."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.support.folders import artifact_files
from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Client, eventually
from tests.system.data_dir import query
from undercroft.cli import app

# Ten artifacts of 10 kB below a limit of 200 kB: half of it is used.
SETTINGS = {"DISK__LIMIT_BYTES": "200kB", "DISK__EVICTION_INTERVAL_MS": "100"}


@pytest.fixture(autouse=True)
def _limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_DISK__LIMIT_BYTES", "200kB")


def run(data_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["evict", "--data-dir", str(data_dir), *arguments])


def fill(node: NodeProcess) -> None:
    with Client(node.url) as client:
        for number in range(10):
            assert client.put_ccache(f"{number:040x}", b"x" * 10_000).status == 201
        # Used again: it goes last, as soon as that is committed.
        assert client.get_ccache(f"{0:040x}") is not None
        newest = "SELECT key FROM cache_artifacts ORDER BY last_accessed_at DESC LIMIT 1"
        eventually(
            lambda: query(node.data_dir / "node.sqlite", newest)[0][0].endswith(f"{0:040x}"), "the use counts"
        )


def test_beside_a_running_node(tmp_path: Path) -> None:
    with node_process(tmp_path / "node", SETTINGS) as node:
        fill(node)
        assert len(artifact_files(node.data_dir)) == 10
        would = json.loads(run(node.data_dir, "--keep", "40kB", "--dry-run", "--json").output)
        assert (would["dry_run"], would["artifacts"], would["bytes"]) == (True, 6, 60_000)
        assert len(artifact_files(node.data_dir)) == 10
        done = run(node.data_dir, "--keep", "40kB")
        assert done.exit_code == 0, done.output
        assert done.output.startswith("6 artifacts went, 60.0 kB; none of them was used after 20")
        assert len(artifact_files(node.data_dir)) == 4
        with Client(node.url) as client:
            assert client.get_ccache(f"{0:040x}") == b"x" * 10_000
            assert client.get_ccache(f"{1:040x}") is None
            # The node sees that there is room again.
            eventually(lambda: client.metric("undercroft_disk_used_bytes") == 40_000, "it counts anew")
        assert node.stop() == 0
        assert node.logged("artifact_damaged") == []


def test_of_a_stopped_node(tmp_path: Path) -> None:
    with node_process(tmp_path / "node", SETTINGS) as node:
        fill(node)
        assert node.stop() == 0
    assert "0 artifacts went, 0 B\n" in run(tmp_path / "node").output
    assert run(tmp_path / "node", "--keep", "0").exit_code == 0
    assert artifact_files(tmp_path / "node") == []
    assert "0 artifacts would go" in run(tmp_path / "node", "--keep", "0", "--dry-run").output


@pytest.mark.parametrize("size", ["-1", "much", "5 apples"])
def test_what_is_no_size(tmp_path: Path, size: str) -> None:
    (tmp_path / "node.sqlite").touch()
    done = run(tmp_path, "--keep", size)
    assert done.exit_code == 2
    assert f"--keep '{size}' is no size" in done.stderr


def test_no_data_directory(tmp_path: Path) -> None:
    done = run(tmp_path / "nothing")
    assert done.exit_code == 2
    assert "is this the data directory of a node?" in done.stderr

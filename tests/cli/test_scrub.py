"""`undercroft scrub`: finds what is damaged, beside a running node and without one."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.support.folders import artifact_files
from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Client
from undercroft.cli import app


def run(data_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["scrub", "--data-dir", str(data_dir), *arguments])


def fill(node: NodeProcess) -> None:
    with Client(node.url) as client:
        for number in range(10):
            assert client.put_ccache(f"{number:040x}", bytes([number]) * 5_000).status == 201


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2_000] ^= 1
    with path.open("r+b") as file:
        file.write(content)


def test_all_is_well(tmp_path: Path) -> None:
    with node_process(tmp_path / "node") as node:
        fill(node)
        assert node.stop() == 0
    done = run(tmp_path / "node")
    assert done.exit_code == 0, done.output
    assert ["artifacts", "that", "are", "whole", "10"] in [line.split() for line in done.output.splitlines()]


@pytest.mark.parametrize("running", [True, False])
def test_damage_is_found(tmp_path: Path, running: bool) -> None:
    with node_process(tmp_path / "node") as node:
        fill(node)
        damaged, gone, *_ = sorted(
            node.data_dir / "artifacts" / name for name in artifact_files(node.data_dir)
        )
        flip_a_bit(damaged)
        gone.unlink()
        if not running:
            assert node.stop() == 0
        done = run(node.data_dir, "--json")
        assert done.exit_code == 1
        found = json.loads(done.stdout)
        figures = found["agree"], found["damaged"], found["rows_without_file"], found["errors"]
        assert figures == (8, 1, 1, 0)
        assert found["complete"]
        assert len(list((node.data_dir / "quarantine").iterdir())) == 1
        if running:
            with Client(node.url) as client:
                assert sum(client.get_ccache(f"{n:040x}") == bytes([n]) * 5_000 for n in range(10)) == 8
    assert run(tmp_path / "node").exit_code == 0


def test_it_does_not_disturb_the_round_of_the_node(tmp_path: Path) -> None:
    with node_process(tmp_path / "node", {"RECONCILE__FILES_PER_SECOND": "1"}) as node:
        fill(node)
        assert json.loads(run(node.data_dir, "--json").stdout)["agree"] == 10
        assert node.stop() == 0
        assert node.logged("reconcile_failed") == []

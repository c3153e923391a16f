"""The snippets of the README do what they say, against a node as `make serve` starts it."""

import os
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.clients.installed import require
from tests.support.node_process import NodeProcess
from tests.support.reference_tables import snippets

ROOT = Path(__file__).parents[2]


def commands(containing: str) -> list[str]:
    """The shell commands, without their prompts, of the one README snippet that contains a text."""
    (block,) = [block for block in snippets(ROOT / "README.md", "console") if containing in block]
    lines = block.replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def run(script: str, folder: Path, node: NodeProcess) -> str:
    script = script.replace("http://127.0.0.1:4000", node.url)
    environment = os.environ | {"CCACHE_DIR": str(folder / "ccache"), "CCACHE_CONFIGPATH": os.devnull}
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_key_value_example(fresh_node: NodeProcess, tmp_path: Path) -> None:
    require("curl", "curl")
    printed = run("\n".join(commands("keyvalue")), tmp_path, fresh_node)
    assert printed == '{"entries":[{"value":"hello"}]}'


def test_the_ccache_example(fresh_node: NodeProcess, tmp_path: Path) -> None:
    require("ccache", "ccache")
    run("\n".join(commands("CCACHE_REMOTE_STORAGE")), tmp_path, fresh_node)
    # The second run fetches a manifest and a result; the first asked for both in vain.
    metrics = httpx.get(f"{fresh_node.url}/metrics").text
    assert 'undercroft_artifact_downloads_total{result="hit",tool="ccache"} 2.0' in metrics


@pytest.mark.parametrize("target", ["serve", "test", "bench", "setup", "help"])
def test_the_make_targets_exist(target: str) -> None:
    assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False).returncode == 0

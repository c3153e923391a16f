"""Bazel as Debian ships it against the node."""

from pathlib import Path

import pytest

from .bazel_client import BazelBuild, BazelBuilds, BazelClient, write_workspace
from .c_project import fresh_marker
from .empty_server import empty_server
from .running_node import RunningNode

_LEAST_ACTIONS = 25
# Of "WARNING: Reading from Remote Cache:" and "WARNING: Writing to Remote Cache:".
_COMPLAINT = "Remote Cache:"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace that no cache has seen, once the tools are known to be there."""
    BazelBuilds().require()
    return write_workspace(tmp_path / "workspace", fresh_marker())


def test_a_warm_build_takes_every_action_from_the_node(
    node: RunningNode, workspace: Path, tmp_path: Path
) -> None:
    client = BazelClient(f"{node.url}/bazel/acme/app")
    cold = client.build(workspace, tmp_path / "cold")
    warm = client.build(workspace, tmp_path / "warm")
    _assert_ran_here(cold)
    _assert_found(warm)
    assert warm.spawned == cold.spawned
    assert warm.outputs == cold.outputs


def test_a_warm_build_finds_nothing_in_an_empty_server(workspace: Path, tmp_path: Path) -> None:
    with empty_server() as server:
        client = BazelClient(f"{server.url}/bazel/acme/app")
        client.build(workspace, tmp_path / "cold")
        warm = client.build(workspace, tmp_path / "warm")
    assert server.seen["GET"] == 2 * warm.spawned
    assert server.seen["PUT"] > server.seen["GET"]
    _assert_ran_here(warm)
    with pytest.raises(AssertionError):
        _assert_found(warm)


def _assert_ran_here(build: BazelBuild) -> None:
    """Every action ran on this machine, and the cache gave no reason to complain."""
    assert build.remote_hits == 0, build.messages
    assert build.spawned == build.processes["local"] >= _LEAST_ACTIONS
    assert _COMPLAINT not in build.messages


def _assert_found(build: BazelBuild) -> None:
    """No action ran on this machine, and the cache gave no reason to complain."""
    assert build.remote_hits == build.spawned >= _LEAST_ACTIONS, build.messages
    assert _COMPLAINT not in build.messages

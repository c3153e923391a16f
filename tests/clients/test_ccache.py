"""ccache as Debian ships it, in each layout, against the node."""

from pathlib import Path
from typing import get_args

import pytest

from .c_project import CProject, fresh_marker, write_c_project
from .ccache_client import FAULTS, CcacheBuild, CcacheClient, Layout
from .empty_server import empty_server
from .installed import require
from .running_node import RunningNode


@pytest.fixture
def project(tmp_path: Path) -> CProject:
    """A program that no cache has seen, once the tools are known to be there."""
    require("ccache", "ccache")
    require("gcc", "gcc")
    return write_c_project(tmp_path / "project", fresh_marker())


@pytest.mark.parametrize("layout", get_args(Layout))
def test_a_warm_build_takes_every_file_from_the_node(
    node: RunningNode, project: CProject, tmp_path: Path, layout: Layout
) -> None:
    client = CcacheClient(f"{node.url}/ccache/acme/app", layout)
    cold = client.build(project, tmp_path / "cold")
    warm = client.build(project, tmp_path / "warm")
    _assert_stored(cold, len(project.sources))
    _assert_found(warm, len(project.sources))
    assert warm.outputs == cold.outputs
    assert warm.printed == cold.printed


def test_a_warm_build_finds_nothing_in_an_empty_server(project: CProject, tmp_path: Path) -> None:
    files = len(project.sources)
    with empty_server() as server:
        client = CcacheClient(f"{server.url}/ccache/acme/app", "subdirs")
        client.build(project, tmp_path / "cold")
        warm = client.build(project, tmp_path / "warm")
    assert server.seen["GET"] == server.seen["PUT"] == 2 * 2 * files
    assert warm.stats["remote_storage_hit"] == 0
    with pytest.raises(AssertionError):
        _assert_found(warm, files)


def _assert_stored(build: CcacheBuild, files: int) -> None:
    """Each file was compiled here; a manifest and a result of each went to the node."""
    assert {name: build.stats[name] for name in FAULTS} == dict.fromkeys(FAULTS, 0)
    assert build.stats["remote_storage_hit"] == 0
    assert build.stats["cache_miss"] == files
    assert build.stats["remote_storage_write"] == 2 * files


def _assert_found(build: CcacheBuild, files: int) -> None:
    """No file was compiled here: a manifest and a result of each came from the node.

    `remote_storage_hit` alone says little: ccache counts what it received before it looks at
    it, so a node that delivers damaged entries has all the hits and none of the use.
    """
    assert {name: build.stats[name] for name in FAULTS} == dict.fromkeys(FAULTS, 0)
    assert build.stats["remote_storage_hit"] == files
    assert build.stats["remote_storage_read_hit"] == 2 * files
    assert build.stats["direct_cache_hit"] == files
    assert build.stats["cache_miss"] == 0

"""Every tool while the node is gone, full, damaged or cut off from its object store: builds stay green."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.node_process import node_process

from .build_client import Build, BuildClient
from .c_project import fresh_marker
from .conftest import BothBuilds
from .node_faults import damage_artifacts, nobody_listening

pytestmark = pytest.mark.client


def test_without_a_node(client: BuildClient, both_builds: BothBuilds, tmp_path: Path) -> None:
    with nobody_listening() as url:
        build = client.build(both_builds.project, url + client.path, tmp_path / "build")
    assert build.hits == 0
    if client.survives_absence:
        _assert_right(build, both_builds)
    else:
        # Tools change; then this one has a better side now, and its entry is to be renewed.
        assert not build.green, build.messages


def test_with_a_full_node(client: BuildClient, both_builds: BothBuilds, tmp_path: Path) -> None:
    full = {"DISK__LIMIT_BYTES": "16"}
    build, again = _two_builds(client, both_builds.project, tmp_path, full)
    _assert_right(build, both_builds)
    _assert_right(again, both_builds)
    assert again.hits < again.cacheable


def test_with_damaged_artifacts(client: BuildClient, both_builds: BothBuilds, tmp_path: Path) -> None:
    shutil.copytree(both_builds.data_dir, tmp_path / "data")
    assert damage_artifacts(tmp_path / "data") > 0
    with node_process(tmp_path / "data") as node:
        build = client.build(both_builds.project, node.url + client.path, tmp_path / "build")
        assert node.stop() == 0
    _assert_right(build, both_builds)


def test_with_the_object_store_down(client: BuildClient, tmp_path: Path) -> None:
    client.write_project(tmp_path / "project", fresh_marker())
    with nobody_listening() as store:
        settings = {
            "OBJECT_STORE__URL": "s3://absent",
            "OBJECT_STORE__ENDPOINT": store,
            "OBJECT_STORE__ACCESS_KEY_ID": "key",
            "OBJECT_STORE__SECRET_ACCESS_KEY": "secret",
        }
        cold, warm = _two_builds(client, tmp_path / "project", tmp_path, settings)
    assert cold.green, cold.messages
    assert warm.green, warm.messages
    assert warm.hits == warm.cacheable, warm.messages
    assert warm.outputs == cold.outputs


def _two_builds(
    client: BuildClient, project: Path, folder: Path, settings: Mapping[str, str]
) -> tuple[Build, Build]:
    """Two builds, each without local state, against one new node."""
    with node_process(folder / "data", settings) as node:
        url = node.url + client.path
        first = client.build(project, url, folder / "first")
        second = client.build(project, url, folder / "second")
        assert node.stop() == 0
    return first, second


def _assert_right(build: Build, reference: BothBuilds) -> None:
    assert build.green, build.messages
    assert build.outputs == reference.cold.outputs

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

FULL = {
    # The volume is fuller than that, whatever lies on it: there may be room again later.
    "no room now": {
        "DISK__LIMIT_PERCENT": "0.0001",
        "DISK__HIGH_WATERMARK_PERCENT": "0.0001",
        "DISK__TARGET_PERCENT": "0.0001",
    },
    "no room ever": {"DISK__LIMIT_BYTES": "16"},
}


def test_without_a_node(client: BuildClient, both_builds: BothBuilds, tmp_path: Path) -> None:
    with nobody_listening() as url:
        build = client.build(both_builds.project, url + client.path, tmp_path / "build")
    assert build.hits == 0
    if client.survives_absence:
        _assert_right(build, both_builds)
    else:
        # Tools change; then this one has a better side now, and its entry is to be renewed.
        assert not build.green, build.messages


@pytest.mark.parametrize("full", FULL.values(), ids=FULL)
def test_with_a_full_node(
    client: BuildClient, both_builds: BothBuilds, tmp_path: Path, full: Mapping[str, str]
) -> None:
    with node_process(tmp_path / "data", full) as node:
        build = client.build(both_builds.project, node.url + client.path, tmp_path / "build")
        assert node.stop() == 0
    _assert_right(build, both_builds)
    assert build.hits == 0


def test_with_damaged_artifacts(client: BuildClient, both_builds: BothBuilds, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(both_builds.data_dir, data)
    with node_process(data) as node:
        # Only then: what is damaged before, the node would set aside before anybody asks for it.
        node.wait_for("reconcile_round")
        assert damage_artifacts(data) > 0
        url = node.url + client.path
        build = client.build(both_builds.project, url, tmp_path / "build")
        healed = client.build(both_builds.project, url, tmp_path / "healed")
        assert node.stop() == 0
    _assert_right(build, both_builds)
    assert build.hits == 0
    # What was found to be absent, the tool stored again.
    _assert_right(healed, both_builds)
    assert healed.hits == healed.cacheable


def test_with_the_object_store_down(client: BuildClient, tmp_path: Path) -> None:
    client.write_project(tmp_path / "project", fresh_marker())
    with nobody_listening() as store:
        settings = {
            "OBJECT_STORE__URL": "s3://absent",
            "OBJECT_STORE__ENDPOINT": store,
            "OBJECT_STORE__ACCESS_KEY_ID": "key",
            "OBJECT_STORE__SECRET_ACCESS_KEY": "secret",
        }
        with node_process(tmp_path / "data", settings) as node:
            url = node.url + client.path
            cold = client.build(tmp_path / "project", url, tmp_path / "cold")
            warm = client.build(tmp_path / "project", url, tmp_path / "warm")
            assert node.stop() == 0
    assert cold.green, cold.messages
    assert warm.green, warm.messages
    assert warm.hits == warm.cacheable, warm.messages
    assert warm.outputs == cold.outputs


def _assert_right(build: Build, reference: BothBuilds) -> None:
    assert build.green, build.messages
    assert build.outputs == reference.cold.outputs

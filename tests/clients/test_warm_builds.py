"""Every tool, cold and warm: the second build takes from the node whatever can be taken."""

from pathlib import Path

import pytest

from .build_client import Build, BuildClient
from .clients_table import PAGE
from .conftest import BothBuilds
from .empty_server import empty_server

pytestmark = pytest.mark.client


def test_a_warm_build_takes_everything_from_the_node(both_builds: BothBuilds) -> None:
    cold, warm = both_builds.cold, both_builds.warm
    assert cold.green, cold.messages
    assert cold.hits == 0, cold.messages
    assert not cold.complaints, cold.messages
    _assert_found(warm)
    assert warm.cacheable == cold.cacheable
    assert warm.outputs == cold.outputs
    assert cold.outputs


def test_a_build_finds_nothing_in_an_empty_server(
    client: BuildClient, both_builds: BothBuilds, tmp_path: Path
) -> None:
    with empty_server() as server:
        again = client.build(both_builds.project, server.url + client.path, tmp_path / "again")
    assert server.seen["GET"] >= again.cacheable
    assert again.green, again.messages
    assert again.hits == 0
    with pytest.raises(AssertionError):
        _assert_found(again)


def test_the_page_of_clients_has_each(client: BuildClient, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-clients-table", default=False):
        pytest.skip("the page is being written")
    assert f"\n| {client.name} | " in PAGE.read_text()


def _assert_found(build: Build) -> None:
    assert build.green, build.messages
    assert build.hits == build.cacheable > 0, build.messages
    assert not build.complaints, build.messages

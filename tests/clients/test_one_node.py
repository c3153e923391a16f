"""A team's node: every tool builds against the same one, some of them at the same time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.node_process import NodeProcess, node_process

from .build_client import Build, BuildClient
from .c_project import fresh_marker
from .every_client import CLIENTS

pytestmark = pytest.mark.client


def test_all_tools_take_everything_from_one_node(tmp_path: Path) -> None:
    for client in CLIENTS:
        client.require()
    with node_process(tmp_path / "data") as node:
        # Two at a time: each of them keeps a processor busy.
        with ThreadPoolExecutor(2) as threads:
            builds = list(threads.map(lambda client: _built_twice(client, node, tmp_path), CLIENTS))
        assert node.stop() == 0
        assert node.logged("request_failed") == []
    for client, (cold, warm) in zip(CLIENTS, builds, strict=True):
        assert (cold.green, cold.hits) == (True, 0), f"{client.name}: {cold.messages}"
        assert warm.green, f"{client.name}: {warm.messages}"
        assert warm.hits == warm.cacheable == cold.cacheable > 0, f"{client.name}: {warm.messages}"
        assert warm.outputs == cold.outputs, client.name


def _built_twice(client: BuildClient, node: NodeProcess, folder: Path) -> tuple[Build, Build]:
    """Cold and warm, with all local state removed between the two."""
    mine = folder / client.name
    project, url = mine / "project", node.url + client.path
    client.write_project(project, fresh_marker())
    return client.build(project, url, mine / "cold"), client.build(project, url, mine / "warm")

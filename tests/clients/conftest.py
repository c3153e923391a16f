"""The node the build tools talk to: a process of its own, stopped as a person would, by SIGTERM."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.node_process import NodeProcess, node_process


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with node_process(tmp_path / "node") as running:
        yield running
        assert running.stop() == 0

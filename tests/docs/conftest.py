"""A node for the pages to be compared with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.node_process import NodeProcess, node_process


@pytest.fixture
def fresh_node(tmp_path: Path) -> Iterator[NodeProcess]:
    with node_process(tmp_path / "data") as running:
        yield running
        assert running.stop() == 0

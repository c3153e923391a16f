"""Tests of the real process: real signals, real locks of other processes, real files."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is in this folder; pytest passes the items of all folders."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Where the node keeps its data; not there yet."""
    return tmp_path / "node"

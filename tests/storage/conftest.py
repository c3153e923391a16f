"""A disk, opened and closed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from undercroft.storage.disk import Disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    opened = Disk(tmp_path)
    opened.open_directories()
    yield opened
    opened.close()

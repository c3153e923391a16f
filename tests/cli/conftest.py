"""Commands see no settings of whoever runs the tests, and leave none behind."""

import os
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in os.environ:
        if name.startswith("UNDERCROFT_"):
            monkeypatch.delenv(name)
    for name in ("FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    yield
    # Commands run in this process set up its log.
    structlog.reset_defaults()

"""What every test gets: hypothesis profiles, and no buffer that outlives its test."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.s3_endpoint import _s3_process, s3_endpoint
from undercroft.buffers import SQLiteBuffer

__all__ = ["_s3_process", "s3_endpoint"]

settings.register_profile(
    "quick",
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "long", parent=settings.get_profile("quick"), max_examples=1_000, stateful_step_count=60
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(autouse=True)
def _reset_buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Resets every buffer a test has opened: neither a row nor a timer reaches the next test."""
    opened: list[SQLiteBuffer[Any, Any]] = []
    really_open = SQLiteBuffer.open

    async def open_and_remember(buffer: SQLiteBuffer[Any, Any]) -> None:
        opened.append(buffer)
        await really_open(buffer)

    monkeypatch.setattr(SQLiteBuffer, "open", open_and_remember)
    yield
    for buffer in opened:
        buffer.reset()

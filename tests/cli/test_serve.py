"""What `undercroft serve` sets for its process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from undercroft.cli import app, serve
from undercroft.config import Settings


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)
    structlog.reset_defaults()


def test_threads_change_places_more_often_than_python_lets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    async def run(_settings: Settings, _place: None) -> None:
        seen.append(sys.getswitchinterval())

    monkeypatch.setattr(serve, "_run", run)
    assert CliRunner().invoke(app, ["serve", "--data-dir", str(tmp_path)]).exit_code == 0
    assert seen == [pytest.approx(serve.SWITCH_INTERVAL_S)]

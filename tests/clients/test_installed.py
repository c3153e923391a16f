"""The rule about missing tools: skipped on a desk, a failure where CI=true."""

from collections.abc import Callable
from pathlib import Path

import pytest

from .installed import require, require_folder, require_npm, require_python

_ABSENT = "undercroft-no-such-tool"


def test_a_tool_that_is_there_is_found() -> None:
    assert Path(require("sh", "dash")).is_file()


def test_a_missing_tool_skips_and_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install absent"):
        require(_ABSENT, "absent")


def test_a_missing_tool_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install absent"):
        require(_ABSENT, "absent")


def test_a_missing_folder_fails_in_ci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install absent"):
        require_folder(tmp_path / _ABSENT, "absent")


@pytest.mark.parametrize(("ask", "install"), [(require_npm, "install-npm"), (require_python, "make")])
def test_a_missing_package_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], str], install: str
) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=f"{_ABSENT} is missing: .*{install}"):
        ask(_ABSENT)

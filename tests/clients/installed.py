"""The one rule about build tools that are not installed."""

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

NPM_COMMANDS = Path(__file__).parents[2] / ".venv" / "npm" / "node_modules" / ".bin"


def require(command: str, package: str) -> str:
    """Return the path of `command`; without it skip, or fail where CI=true promises it."""
    found = shutil.which(command)
    if found is None:
        _missing(command, package)
    return found


def require_npm(command: str) -> str:
    """Return the path of a `command` of the npm packages pinned in the folder `npm`, by the same rule."""
    found = NPM_COMMANDS / command
    if not found.exists():
        _complain(f"{command} is missing: scripts/install-npm-packages tests/clients/npm")
    return str(found)


def require_python(command: str) -> str:
    """Return the path of a `command` that a Python package of the development group brings."""
    found = Path(sys.executable).parent / command
    if not found.exists():
        _complain(f"{command} is missing: make .venv/.dev")
    return str(found)


def require_folder(folder: Path, package: str) -> None:
    """Ask for a folder that `package` installs, by the same rule."""
    if not folder.is_dir():
        _missing(str(folder), package)


def _missing(what: str, package: str) -> NoReturn:
    _complain(f"{what} is missing: apt-get install {package}")


def _complain(complaint: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(complaint)
    pytest.skip(complaint)

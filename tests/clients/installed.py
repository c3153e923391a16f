"""The one rule about build tools that are not installed."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def require(command: str, package: str) -> str:
    """Return the path of `command`; without it skip, or fail where CI=true promises it."""
    found = shutil.which(command)
    if found is None:
        _missing(command, package)
    return found


def require_folder(folder: Path, package: str) -> None:
    """Ask for a folder that `package` installs, by the same rule."""
    if not folder.is_dir():
        _missing(str(folder), package)


def _missing(what: str, package: str) -> NoReturn:
    complaint = f"{what} is missing: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(complaint)
    pytest.skip(complaint)

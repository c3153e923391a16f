"""A git repository around a project, for tools that cache nothing without one."""

from collections.abc import Mapping
from pathlib import Path

from .commands import run

_LIMIT = 30.0
_WHO = ("-c", "user.name=test", "-c", "user.email=test@example.org")


def commit_everything(folder: Path, env: Mapping[str, str]) -> None:
    """Make `folder` a repository whose first commit has all its files."""
    run(["git", "init", "--quiet"], folder, env, _LIMIT)
    run(["git", "add", "--all"], folder, env, _LIMIT)
    run(["git", *_WHO, "commit", "--quiet", "--message=start"], folder, env, _LIMIT)

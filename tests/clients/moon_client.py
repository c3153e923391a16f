"""Builds the folder `js_workspace` with moon, whose remote cache is Bazel's over HTTP."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .build_client import Build
from .commands import run, try_to_run
from .git_repository import commit_everything
from .installed import require, require_npm
from .js_workspace_copy import STEPS, copy_to_build, outputs_of, write_js_workspace
from .npm_environment import npm_environment, npm_path

_BUILD_LIMIT = 100.0
_COMMAND_LIMIT = 30.0
_COMPLAINT = re.compile(r"^.*\[ *(?:WARN|ERROR).*$", re.MULTILINE)
_TOKEN = "CACHE_TOKEN"

_REMOTE = """
remote:
  host: '{host}'
  api: http
  cache:
    instanceName: '{instance}'
"""
# moon reads the token from the variable that its configuration names.
_AUTH = f"  auth:\n    token: '{_TOKEN}'\n"


@dataclass(frozen=True)
class MoonClient:
    """moon; its account is part of the host and its project the instance. A token is sent as Bearer."""

    name: str = "moon"
    path: str = "/bazel/acme/app"
    survives_absence: bool = True

    def require(self) -> None:
        """Ask for moon, and for git, without which moon caches nothing."""
        require_npm("moon")
        require("git", "git")

    def version(self) -> str:
        """Its version."""
        env = {"HOME": "/nonexistent", "PATH": npm_path()}
        return run([require_npm("moon"), "--version"], Path("/"), env, _COMMAND_LIMIT).stdout.split()[1]

    def write_project(self, folder: Path, marker: str) -> None:
        """Three packages in JavaScript."""
        write_js_workspace(folder, marker)

    def build(self, project: Path, url: str, local: Path, token: str | None = None) -> Build:
        """Build and report in a copy; moon's own report tells where each result came from."""
        argv = [require_npm("moon"), "run", ":build", ":report"]
        workspace = copy_to_build(project, local)
        env = npm_environment(local) | ({_TOKEN: token} if token else {})
        _configure(workspace, url, token)
        commit_everything(workspace, env)
        attempt = try_to_run(argv, workspace, env, _BUILD_LIMIT)
        messages = attempt.output.stdout + attempt.output.stderr
        return Build(
            green=attempt.code == 0,
            hits=_remote_hits(workspace),
            cacheable=STEPS,
            seconds=attempt.seconds,
            outputs=outputs_of(workspace),
            complaints=_COMPLAINT.findall(messages),
            messages=messages,
        )


def _configure(workspace: Path, url: str, token: str | None) -> None:
    host, _, instance = url.rpartition("/")
    with (workspace / ".moon" / "workspace.yml").open("a") as file:
        file.write(_REMOTE.format(host=host, instance=instance) + (_AUTH if token else ""))


def _remote_hits(workspace: Path) -> int:
    report = workspace / ".moon" / "cache" / "runReport.json"
    actions: list[dict[str, Any]] = json.loads(report.read_text())["actions"] if report.exists() else []
    return sum(action["status"] == "cached-from-remote" for action in actions)

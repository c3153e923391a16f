"""Builds the folder `js_workspace` with Turborepo and its remote cache."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from .build_client import Build
from .commands import run, try_to_run
from .installed import require_npm
from .js_workspace_copy import STEPS, copy_to_build, outputs_of, write_js_workspace
from .npm_environment import npm_environment, npm_path

_BUILD_LIMIT = 100.0
_COMMAND_LIMIT = 30.0
_COMPLAINT = re.compile(r"^.*WARNING.*(?:cache|artifact).*$", re.MULTILINE)


@dataclass(frozen=True)
class TurboClient:
    """turbo with the remote cache only; a token is sent as Bearer."""

    name: str = "turbo"
    path: str = "/turborepo/acme/app"
    survives_absence: bool = True

    def require(self) -> None:
        """Ask for turbo."""
        require_npm("turbo")

    def version(self) -> str:
        """Its version."""
        environment = {"TURBO_TELEMETRY_DISABLED": "1", "HOME": "/nonexistent", "PATH": npm_path()}
        return run([require_npm("turbo"), "--version"], Path("/"), environment, _COMMAND_LIMIT).stdout.strip()

    def write_project(self, folder: Path, marker: str) -> None:
        """Three packages in JavaScript."""
        write_js_workspace(folder, marker)

    def build(self, project: Path, url: str, local: Path, token: str | None = None) -> Build:
        """Build and report in a copy; turbo's own summary tells where each result came from."""
        argv = [require_npm("turbo"), "run", "build", "report", "--cache=remote:rw", "--summarize"]
        workspace = copy_to_build(project, local)
        env = npm_environment(local) | {
            "TURBO_API": url,
            "TURBO_TEAM": "acme",
            # Without a token the remote cache is off, even where the server asks for none.
            "TURBO_TOKEN": token or "any",
            "TURBO_TELEMETRY_DISABLED": "1",
            "TURBO_NO_UPDATE_NOTIFIER": "1",
        }
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


def _remote_hits(workspace: Path) -> int:
    (summary,) = (workspace / ".turbo" / "runs").glob("*.json")
    tasks = json.loads(summary.read_text())["tasks"]
    return sum(task["cache"]["status"] == "HIT" and task["cache"]["remote"] for task in tasks)

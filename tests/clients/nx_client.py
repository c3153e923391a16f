"""Builds the folder `js_workspace` with Nx and a self-hosted remote cache."""

import re
from dataclasses import dataclass
from pathlib import Path

from .build_client import Build
from .commands import run, try_to_run
from .installed import NPM_COMMANDS, require_npm
from .js_workspace_copy import STEPS, copy_to_build, outputs_of, write_js_workspace
from .npm_environment import npm_environment, npm_path

_BUILD_LIMIT = 100.0
_COMMAND_LIMIT = 30.0
_FROM_REMOTE = re.compile(r"nx run \S+ +\[remote cache\]")


@dataclass(frozen=True)
class NxClient:
    """Nx without its daemon; a token is sent as Bearer."""

    name: str = "nx"
    path: str = "/nx/acme/app"
    # Whatever its remote cache does wrong is an error of the run.
    survives_absence: bool = False

    def require(self) -> None:
        """Ask for Nx."""
        require_npm("nx")

    def version(self) -> str:
        """Its version."""
        argv = [require_npm("nx"), "--version"]
        env = {"PATH": npm_path(), "NX_DAEMON": "false"}
        text = run(argv, Path(__file__).parent, env, _COMMAND_LIMIT).stdout
        return ", ".join(re.findall(r"v(\d+\.\d+\.\d+)", text))

    def write_project(self, folder: Path, marker: str) -> None:
        """Three packages in JavaScript."""
        write_js_workspace(folder, marker)

    def build(self, project: Path, url: str, local: Path, token: str | None = None) -> Build:
        """Build and report in a copy; Nx names each step whose result came from the remote cache."""
        argv = [require_npm("nx"), "run-many", "--targets=build,report", "--outputStyle=stream"]
        workspace = copy_to_build(project, local)
        # Nx wants to be found beside what it builds.
        (workspace / "node_modules").symlink_to(NPM_COMMANDS.parent)
        env = npm_environment(local) | {
            "NX_SELF_HOSTED_REMOTE_CACHE_SERVER": url,
            "NX_DAEMON": "false",
            "NX_TUI": "false",
            "NX_CACHE_DIRECTORY": str(local / "cache"),
            "NX_WORKSPACE_DATA_DIRECTORY": str(local / "data"),
        }
        if token:
            env["NX_SELF_HOSTED_REMOTE_CACHE_ACCESS_TOKEN"] = token
        attempt = try_to_run(argv, workspace, env, _BUILD_LIMIT)
        messages = attempt.output.stdout + attempt.output.stderr
        return Build(
            green=attempt.code == 0,
            hits=len(_FROM_REMOTE.findall(messages)),
            cacheable=STEPS,
            seconds=attempt.seconds,
            outputs=outputs_of(workspace),
            complaints=(),  # of its cache it complains by failing
            messages=messages,
        )

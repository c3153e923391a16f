"""Builds the folder `rush_project` with Rush, whose HTTP cache takes any server of opaque blobs."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .build_client import Build
from .commands import run, try_to_run
from .digests import digests_under
from .git_repository import commit_everything
from .installed import NPM_COMMANDS, require, require_npm
from .marked_copy import write_marked_copy
from .npm_environment import npm_environment

_PROJECT = Path(__file__).parent / "rush_project"
_BUILD_LIMIT = 100.0
_COMMAND_LIMIT = 60.0
_STEPS = 3
# Without a credential it mentions at every miss that it has none.
_COMPLAINT = re.compile(r"^(?:Could not .*|Error \w+ cache entry: (?!Error: Credentials).*)$", re.MULTILINE)
_RESTORED = re.compile(r'^"\w+" was restored from the build cache\.$', re.MULTILINE)


@dataclass(frozen=True)
class RushClient:
    """Rush on the route of ccache; a token is the whole header in `RUSH_BUILD_CACHE_CREDENTIAL`."""

    name: str = "rush"
    path: str = "/ccache/acme/app/"
    survives_absence: bool = True

    def require(self) -> None:
        """Ask for Rush and its package manager, and for git, without which Rush caches nothing."""
        require_npm("rush")
        require_npm("pnpm")
        require("git", "git")

    def version(self) -> str:
        """The version the project asks for, which is the one that is installed."""
        version: str = json.loads((_PROJECT / "rush.json").read_text())["rushVersion"]
        return version

    def write_project(self, folder: Path, marker: str) -> None:
        """Three packages in JavaScript."""
        write_marked_copy(_PROJECT, folder, marker)

    def build(self, project: Path, url: str, local: Path, token: str | None = None) -> Build:
        """Link the packages of a copy, then build them; Rush names each that it restored."""
        workspace = local / "workspace"
        shutil.copytree(project, workspace)
        env = npm_environment(local)
        env["RUSH_GLOBAL_FOLDER"] = str(_with_pnpm(local / "rush", env))
        _configure(workspace, url)
        commit_everything(workspace, env)
        run([require_npm("rush"), "update"], workspace, env, _COMMAND_LIMIT)
        if token:
            env["RUSH_BUILD_CACHE_CREDENTIAL"] = f"Bearer {token}"
        attempt = try_to_run([require_npm("rush"), "build", "--verbose"], workspace, env, _BUILD_LIMIT)
        messages = attempt.output.stdout + attempt.output.stderr
        return Build(
            green=attempt.code == 0,
            hits=len(_RESTORED.findall(messages)),
            cacheable=_STEPS,
            seconds=attempt.seconds,
            outputs=_outputs_of(workspace),
            complaints=_COMPLAINT.findall(messages),
            messages=messages,
        )


def _with_pnpm(folder: Path, env: Mapping[str, str]) -> Path:
    """Make the folder where Rush keeps its package manager, which it would fetch without a digest."""
    node = run(["node", "--version"], folder.parent, env, _COMMAND_LIMIT).stdout.strip()
    version: str = json.loads((_PROJECT / "rush.json").read_text())["pnpmVersion"]
    installed = folder / f"node-{node}" / f"pnpm-{version}"
    installed.mkdir(parents=True)
    (installed / "node_modules").symlink_to(NPM_COMMANDS.parent)
    (installed / "last-install.flag").write_text(json.dumps({"node": node.removeprefix("v")}))
    return folder


def _configure(workspace: Path, url: str) -> None:
    http = {"url": url, "uploadMethod": "PUT", "isCacheWriteAllowed": True}
    cache = {"buildCacheEnabled": True, "cacheProvider": "http", "httpConfiguration": http}
    (workspace / "common" / "config" / "rush" / "build-cache.json").write_text(json.dumps(cache))


def _outputs_of(workspace: Path) -> dict[str, str]:
    digests = digests_under(workspace / "packages")
    return {path: digest for path, digest in digests.items() if "/dist/" in path}

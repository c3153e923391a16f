"""The folder `js_workspace`: three packages, two cacheable steps each, as several tools build it."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from .digests import digests_under
from .installed import NPM_COMMANDS, require
from .marked_copy import write_marked_copy

STEPS = 6

_TEMPLATE = Path(__file__).parent / "js_workspace"
_BUILT = re.compile(r"^packages/\w+/(dist|report)/")


def write_js_workspace(folder: Path, marker: str) -> None:
    """Write it into the new `folder`, with `marker` in an input of every step."""
    write_marked_copy(_TEMPLATE, folder, marker)


def copy_to_build(project: Path, local: Path) -> Path:
    """Copy a workspace into the new folder `local`, where tools may write between its files."""
    workspace = local / "workspace"
    shutil.copytree(project, workspace)
    # Nx wants to be found there. Nothing of it is an input of a step.
    (workspace / "node_modules").symlink_to(NPM_COMMANDS.parent)
    # Below the workspace some tools would take it for a file of the project.
    (local / "home").mkdir()
    (local / "home" / ".npmrc").write_text("update-notifier=false\n")
    return workspace


def environment(local: Path) -> dict[str, str]:
    """What every tool of npm is given."""
    folders = [str(Path(require("node", "nodejs")).parent), "/usr/bin", "/bin"]
    return {"PATH": os.pathsep.join(folders), "HOME": str(local / "home"), "LC_ALL": "C", "NO_COLOR": "1"}


def outputs_of(workspace: Path) -> Mapping[str, str]:
    """Digests of everything the steps made."""
    digests = digests_under(workspace / "packages")
    return {path: digest for path, digest in digests.items() if _BUILT.match(f"packages/{path}")}

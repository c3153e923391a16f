"""The folder `js_workspace`: three packages, two cacheable steps each, as several tools build it."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from .digests import digests_under
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
    return workspace


def outputs_of(workspace: Path) -> Mapping[str, str]:
    """Digests of everything the steps made."""
    digests = digests_under(workspace / "packages")
    return {path: digest for path, digest in digests.items() if _BUILT.match(f"packages/{path}")}

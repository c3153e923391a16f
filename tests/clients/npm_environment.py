"""What every tool of npm is given as its environment."""

import os
from pathlib import Path

from .installed import require


def npm_environment(local: Path) -> dict[str, str]:
    """A home in `local`, beside the workspace, and programs; nothing of the caller's."""
    home = local / "home"
    home.mkdir(parents=True)
    # npm, which runs the scripts of packages, would ask for newer versions of itself.
    (home / ".npmrc").write_text("update-notifier=false\n")
    return {"PATH": npm_path(), "HOME": str(home), "LC_ALL": "C", "NO_COLOR": "1"}


def npm_path() -> str:
    """Where Node.js and everything else is found."""
    return os.pathsep.join([str(Path(require("node", "nodejs")).parent), "/usr/bin", "/bin"])

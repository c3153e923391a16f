"""Projects that are committed as folders, copied with a marker in them."""

import shutil
from pathlib import Path

_PLACEHOLDER = "@MARKER@"


def write_marked_copy(template: Path, folder: Path, marker: str) -> None:
    """Copy `template` into the new `folder`, `marker` in the place of every `@MARKER@`."""
    shutil.copytree(template, folder)
    for path in folder.rglob("*"):
        if path.is_file() and _PLACEHOLDER in (text := path.read_text()):
            path.write_text(text.replace(_PLACEHOLDER, marker))

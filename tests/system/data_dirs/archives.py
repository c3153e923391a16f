"""The data directories of released versions as they are kept, and how they are opened."""

import json
import tarfile
from pathlib import Path

from tests.system.data_dirs.left import Left

FOLDER = Path(__file__).parent

VERSIONS = ["0.1.0", "0.2.0", "0.3.0"]
"""Those released; `scripts/make-data-dir` makes another. The first two have nothing but what is stored."""

# What was written when a version was released is older with every day, and is to be found all the same.
KEPT = {"KEY_VALUES__MAX_AGE_DAYS": "36500"}


def unpack(version: str, folder: Path) -> Left:
    """The data directory of a version goes to `folder/data`; what is known of it is answered."""
    with tarfile.open(FOLDER / f"{version}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    served = folder / "served.json"
    return Left(stored=json.loads(served.read_text())) if served.exists() else Left.read(folder)


def settings(left: Left) -> dict[str, str]:
    """Of a node that is to find everything again."""
    return KEPT | ({"AUTH__MODE": "tokens"} if left.tokens else {})

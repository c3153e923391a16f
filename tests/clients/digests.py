"""Digests of what a build left behind."""

import hashlib
from pathlib import Path


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests_under(folder: Path) -> dict[str, str]:
    """Map each regular file under `folder` to its digest; links are left out."""
    files = (path for path in sorted(folder.rglob("*")) if _is_regular(path))
    return {str(path.relative_to(folder)): digest_of(path) for path in files}


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()

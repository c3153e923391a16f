"""What must survive a loss of power: fsync of files and of the names in a directory (man 2 fsync)."""

import os
from pathlib import Path


def write_through(path: Path, data: bytes) -> None:
    """Writes a file through to the medium; its name is durable after `sync_directory`. Raises OSError."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Makes durable what anybody wrote into the file. Raises OSError."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Makes durable which names are in the directory, and which no longer are. Raises OSError."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

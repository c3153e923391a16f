"""What a node can suffer between two builds."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def nobody_listening() -> Iterator[str]:
    """A URL without a path where every connection is refused, as after the end of a node."""
    # Bound but not listening: nobody else can be given the port meanwhile.
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def damage_artifacts(data_dir: Path) -> int:
    """Flip one byte in the middle of every artifact, whose size stays the same; returns how many."""
    artifacts = [path for path in (data_dir / "artifacts").rglob("*") if path.is_file()]
    return sum(_damage(path) for path in artifacts)


def _damage(path: Path) -> bool:
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return False
        file.seek(size // 2)
        byte = file.read(1)[0]
        file.seek(size // 2)
        file.write(bytes([byte ^ 0xFF]))
    return True

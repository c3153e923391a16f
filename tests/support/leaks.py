"""What this process holds open."""

import threading
from pathlib import Path


def open_files(under: Path) -> list[str]:
    """The files under a folder that this process has open, once per descriptor."""
    links = (link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return sorted(str(target) for target in links if target.is_relative_to(under))


def database_threads() -> list[str]:
    """The names of the threads that own connections."""
    roles = ("-writer", "-reader", "-checkpointer")
    return sorted(thread.name for thread in threading.enumerate() if thread.name.endswith(roles))

"""What this process holds open."""

import threading
from pathlib import Path


def open_files(under: Path) -> list[str]:
    """The files below a folder that this process has open, once per descriptor; no directory of artifacts."""
    targets = filter(None, map(_target, Path("/proc/self/fd").iterdir()))
    return sorted(
        str(target) for target in targets if target.is_relative_to(under) and not _is_scanned(target, under)
    )


def _is_scanned(target: Path, under: Path) -> bool:
    """Reconcile looks into directories of artifacts all the time."""
    return "artifacts" in target.relative_to(under.parent).parts and target.is_dir()


def _target(link: Path) -> Path | None:
    try:
        return link.readlink()
    except FileNotFoundError:  # a thread closed it since the folder was listed
        return None


def database_threads() -> list[str]:
    """The names of the threads that own connections."""
    roles = ("-writer", "-reader", "-checkpointer")
    return sorted(thread.name for thread in threading.enumerate() if thread.name.endswith(roles))

"""Where benchmarks keep their files, and what kind of file system that is."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = "BENCHMARK_FOLDER"
"""The environment variable that names a directory for them; otherwise they are in the working directory."""

MOUNTS = Path("/proc/self/mountinfo")
JOURNALS = Path("/proc/fs/jbd2")
"""Has a directory for each journal, by the name of its device."""


def chosen_folder() -> Path:
    """The directory for the files of benchmarks."""
    return Path(os.environ.get(FOLDER) or Path.cwd())


@contextmanager
def workspace() -> Iterator[Path]:
    """A directory on a disk, not on a tmpfs unless that was chosen, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=".benchmark-", dir=chosen_folder()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def file_system(folder: Path) -> str:
    """What a directory is on, as `tmpfs`, `ext4`, or `ext4 without a journal`.

    Without a journal ext4 gives no inode out again for minutes after a delete, and looks at all those each
    time a file is made: ten times the processor time of a new file (`find_inode_bit`, fs/ext4/ialloc.c).
    """
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    # Fields by proc(5): the third is the device, the first after the dash the type.
    mounts = (line.split(" - ") for line in MOUNTS.read_text().splitlines())
    kind = next((right.split()[0] for left, right in mounts if left.split()[2] == number), "unknown")
    return f"{kind} without a journal" if kind == "ext4" and not _has_journal(number) else kind


def _has_journal(number: str) -> bool:
    name = Path(f"/sys/dev/block/{number}").resolve().name
    return any(JOURNALS.glob(f"{name}-*"))

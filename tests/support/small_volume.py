"""A small file system of its own, mounted for as long as a test needs it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MEGABYTE = 1 << 20


@contextmanager
def small_volume(kind: str, folder: Path, megabytes: int) -> Iterator[Path]:
    """Mounts a `tmpfs`, or an `ext4` in a file, of that size; answers its root.

    Skips the test where that is not possible: it takes root, and for ext4 a loop device. Where it has
    to be possible (`CI=true`) a tmpfs that cannot be mounted fails the test.
    """
    root = folder / "volume"
    root.mkdir()
    try:
        mount = _mount_tmpfs if kind == "tmpfs" else _mount_ext4
        mount(root, megabytes)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = f"cannot mount a {kind}: {getattr(error, 'stderr', '') or error}"
        if kind == "tmpfs" and os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield root
    finally:
        _run("umount", str(root))


def _mount_tmpfs(root: Path, megabytes: int) -> None:
    _run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "undercroft-test", str(root))


def _mount_ext4(root: Path, megabytes: int) -> None:
    image = root.with_suffix(".ext4")
    with image.open("wb") as file:
        file.truncate(megabytes * MEGABYTE)
    _run("mkfs.ext4", "-q", "-F", str(image))
    # The loop device goes with the mount.
    _run("mount", "-o", "loop", str(image), str(root))


def _run(program: str, *arguments: str) -> None:
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise FileNotFoundError(f"{program} is not installed")
    subprocess.run([found, *arguments], check=True, capture_output=True, text=True)


def occupied(root: Path) -> float:
    """How full the volume is, in percent, as the node counts it: room kept for root is not free."""
    answer = os.statvfs(root)
    return 100 * (1 - answer.f_bavail / answer.f_blocks)

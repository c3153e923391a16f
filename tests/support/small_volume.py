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
def small_volume(kind: str, folder: Path, megabytes: int, *, inodes: int | None = None) -> Iterator[Path]:
    """Mounts a `tmpfs`, or an `ext4` in a file, of that size; answers its root.

    `inodes` bounds how many files it can hold. An ext4 becomes read-only at its first error.

    Skips the test where that is not possible: it takes root, and for ext4 a loop device. Where it has
    to be possible (`CI=true`) a tmpfs that cannot be mounted fails the test.
    """
    root = folder / "volume"
    root.mkdir()
    try:
        mount = _mount_tmpfs if kind == "tmpfs" else _mount_ext4
        mount(root, megabytes, inodes)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = f"cannot mount a {kind}: {getattr(error, 'stderr', '') or error}"
        if kind == "tmpfs" and os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield root
    finally:
        _run("umount", str(root))


def _mount_tmpfs(root: Path, megabytes: int, inodes: int | None) -> None:
    options = f"size={megabytes}m" + ("" if inodes is None else f",nr_inodes={inodes}")
    _run("mount", "-t", "tmpfs", "-o", options, "undercroft-test", str(root))


def _mount_ext4(root: Path, megabytes: int, inodes: int | None) -> None:
    image = root.with_suffix(".ext4")
    with image.open("wb") as file:
        file.truncate(megabytes * MEGABYTE)
    _run("mkfs.ext4", "-q", "-F", *(() if inodes is None else ("-N", str(inodes))), str(image))
    # The loop device goes with the mount.
    _run("mount", "-o", "loop,errors=remount-ro", str(image), str(root))


def _run(program: str, *arguments: str) -> None:
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise FileNotFoundError(f"{program} is not installed")
    subprocess.run([found, *arguments], check=True, capture_output=True, text=True)


def occupied(root: Path) -> float:
    """How full the volume is, in percent, as `df` and the node count it: without what is kept for root."""
    answer = os.statvfs(root)
    taken = answer.f_blocks - answer.f_bfree
    return 100 * taken / (taken + answer.f_bavail)


def fail(root: Path) -> None:
    """The ext4 meets an error in itself, and may only be read from now on, until it is mounted anew."""
    number = root.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")


def mount_anew(root: Path) -> None:
    """Unmounts an ext4, which nobody may use any more, has it checked, and mounts it at the same place."""
    image = root.with_suffix(".ext4")
    _run("umount", str(root))
    found = shutil.which("fsck.ext4", path="/usr/sbin:/sbin")
    assert found is not None
    # 1: errors were corrected.
    done = subprocess.run([found, "-y", "-f", str(image)], check=False, capture_output=True, text=True)
    assert done.returncode in (0, 1), done
    _run("mount", "-o", "loop,errors=remount-ro", str(image), str(root))


def remount(root: Path, option: str) -> None:
    """Mounts the volume `ro` or `rw`; `ro` is refused while a file on it is open for writing."""
    _run("mount", "-o", f"remount,{option}", str(root))


class Filler:
    """A file of somebody else's on a volume, which takes all its room."""

    def __init__(self, root: Path) -> None:
        self._path = root / "somebody-elses"

    def fill(self, leave: int = 0) -> None:
        """Takes what is free but for about `leave` bytes. Called again it takes what became free since."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for size in (MEGABYTE, 4096):
                self._append(descriptor, size, leave)
        finally:
            os.close(descriptor)

    def _append(self, descriptor: int, size: int, leave: int) -> None:
        while True:
            answer = os.fstatvfs(descriptor)
            # Of root: so much can the node, which runs as root as well, write.
            free = answer.f_bfree * answer.f_frsize - leave
            if free < size and (leave or size > 4096):
                return
            end = os.fstat(descriptor).st_size
            try:
                os.posix_fallocate(descriptor, end, size)
            except OSError:
                return

    def free(self) -> None:
        """Gives all of it back. Idempotent."""
        self._path.unlink(missing_ok=True)

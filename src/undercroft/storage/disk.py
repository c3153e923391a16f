"""Files of artifacts: written under a temporary name, published at once and whole, opened, deleted.

Everything here blocks, and is called through `DiskThreads`, but for `open`, which is quick.
"""

import errno
import fcntl
import hashlib
import itertools
import os
import shutil
import stat
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from undercroft.durable import sync_directory
from undercroft.errors import ClosedError, DataDirectoryError, unusable_directory
from undercroft.storage.boot import boot_id
from undercroft.storage.label import Label, boot_mark, label_of, takes_labels, write_label
from undercroft.storage.layout import artifact_path
from undercroft.storage.open_file import NO_FILE, OPEN_FLAGS, READ_BYTES, FoundFile, OpenFile


class TemporaryFile:
    """Bytes on their way to becoming an artifact, hashed as they come. Not safe for two threads at once."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(self, data: bytes) -> None:
        """Appends; raises OSError."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._hash.update(data)
        self.size += len(data)

    def pause(self) -> None:
        """Gives the descriptor back; `resume` opens the file again. Idempotent."""
        self._close()

    def resume(self) -> None:
        """Opens a paused file to go on at its end; raises OSError."""
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def append(self, other: "TemporaryFile") -> None:
        """Adds the bytes of another file, a piece at a time; raises OSError."""
        end = self.size + other.size
        with Path(other.path).open("rb", buffering=0) as source:
            while piece := source.read(READ_BYTES):
                self.write(piece)
        if self.size != end:
            raise OSError(errno.EIO, "the file has not the bytes that were written to it", other.path)

    def digest(self) -> str:
        """SHA-256 of what was written, 64 lowercase hex digits."""
        return self._hash.hexdigest()

    def finish(self, label: Label | None, *, fsync: bool) -> FoundFile:
        """Gives the file its label, if any, and closes it; answers what it is. Raises OSError."""
        try:
            if label is not None:
                write_label(self._descriptor, label)
            if fsync:
                os.fsync(self._descriptor)
            status = os.fstat(self._descriptor)
            return FoundFile(status.st_size, status.st_ino, status.st_mtime_ns, label)
        finally:
            self._close()

    def discard(self) -> None:
        """Removes the temporary name, whatever became of the file. Idempotent."""
        self._close()
        if self.path:
            with suppress(FileNotFoundError):
                os.unlink(self.path)
            self.path = ""

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Disk:
    """The directory of artifacts.

    Temporary files have a directory of their own for each process, on the same file system, locked
    as long as the process lives: sweeping up after a dead one means removing its directory, without
    a walk through millions of artifacts.
    """

    def __init__(self, data_dir: Path, *, fsync: bool = False) -> None:
        self.artifacts = data_dir / "artifacts"
        self._quarantine = data_dir / "quarantine"
        self._temporaries = data_dir / "temporary"
        self._mine = self._temporaries / uuid.uuid4().hex
        self._lock: int | None = None
        self._names = itertools.count()  # several threads draw from it
        self.syncs = fsync
        """Whether what is published is on the medium by then, which takes long."""
        self.boot = boot_mark(boot_id())
        """This boot of the machine, as labels say it."""
        self.files_vouch = False
        """Whether the file system keeps what files say of themselves; known once the directories are open."""

    def open_directories(self) -> None:
        """Makes the directories, sweeps up after dead processes. Raises `DataDirectoryError`."""
        try:
            # What builds made is nobody else's to read, unless a person makes the directory so.
            self.artifacts.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for directory in (self.artifacts, self._quarantine, self._temporaries):
                directory.mkdir(parents=True, exist_ok=True)
            self._claim()
        except OSError as error:
            raise unusable_directory(self.artifacts, error) from error

    def _claim(self) -> None:
        # One process at a time: a directory that is made and not locked yet looks abandoned.
        turn = _lock(self._temporaries)
        try:
            self._mine.mkdir()
            self._lock = _lock(self._mine)
            self.files_vouch = takes_labels(f"{self._mine}/label")
            self._sweep()
        finally:
            os.close(turn)

    def _sweep(self) -> None:
        for directory in self._temporaries.iterdir():
            if directory != self._mine and directory.is_dir() and _is_abandoned(directory):
                shutil.rmtree(directory)

    def close(self) -> None:
        """Removes the directory for temporary files. Idempotent."""
        if self._lock is not None:
            shutil.rmtree(self._mine, ignore_errors=True)
            os.close(self._lock)
            self._lock = None

    def temporary(self) -> TemporaryFile:
        """A new temporary file; raises OSError."""
        if self._lock is None:
            raise ClosedError("the disk is closed: nothing can be written")
        return TemporaryFile(f"{self._mine}/{next(self._names)}")

    def publish_new(self, temporary: TemporaryFile, key: str) -> bool:
        """Gives a finished file its final name unless somebody has it; answers whether it did.

        A link, because unlike a rename it never replaces: of several writers one wins.
        """
        final = artifact_path(self.artifacts, key)
        try:
            made = _with_parents(final, lambda: os.link(temporary.path, final))
        except FileExistsError:
            return False
        self._make_durable(final, made)
        return True

    def publish_over(self, temporary: TemporaryFile, key: str) -> None:
        """Gives a finished file its final name, in the place of whatever has it, at once.

        An empty directory is no artifact and makes way. Raises OSError, then the old file is there as
        before, or none; `DataDirectoryError` if there is a directory with something in it.
        """
        final = artifact_path(self.artifacts, key)
        made = False
        try:
            made = _with_parents(final, lambda: os.replace(temporary.path, final))
        except IsADirectoryError:
            _remove_directory(final, key)
            os.replace(temporary.path, final)
        temporary.path = ""
        self._make_durable(final, made)

    def _make_durable(self, final: str, made: bool) -> None:
        """Syncs the name of a file, and those of its directories if some were `made` for it."""
        if not self.syncs:
            return
        try:
            for directory in Path(final).parents:
                sync_directory(directory)
                if not made or directory == self.artifacts:
                    break
        except OSError:
            # A name that may vanish with the power was never promised to anybody.
            Path(final).unlink(missing_ok=True)
            raise

    def finish(self, temporary: TemporaryFile, stored_at: int) -> FoundFile:
        """Labels a temporary file and closes it, through to the medium if so set; answers what it is.

        `stored_at` in microseconds since the epoch. Raises OSError.
        """
        label = None
        if self.files_vouch:
            label = Label(temporary.size, temporary.digest(), stored_at, self.boot)
        return temporary.finish(label, fsync=self.syncs)

    def open(self, key: str) -> OpenFile | None:
        """Opens an artifact for reading, None when there is none. Raises other OSErrors.

        Whatever else somebody put under its name is none either.
        """
        try:
            descriptor = os.open(artifact_path(self.artifacts, key), OPEN_FLAGS)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in NO_FILE:
                return None
            raise
        try:
            status = os.fstat(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            return None
        return OpenFile(descriptor, status.st_size, status.st_ino, status.st_mtime_ns)

    def look(self, key: str) -> FoundFile | None:
        """What is known of an artifact's file without reading it, None when there is none. Raises OSError."""
        file = self.open(key)
        if file is None:
            return None
        try:
            return FoundFile.of(file, label_of(file.descriptor))
        finally:
            os.close(file.descriptor)

    def has_name(self, key: str, inode: int) -> bool:
        """Whether that file has the name of the artifact now. Quick."""
        try:
            return os.lstat(artifact_path(self.artifacts, key)).st_ino == inode
        except (FileNotFoundError, NotADirectoryError):
            return False

    def delete_file(self, key: str, inode: int) -> int | None:
        """Removes this file of an artifact; answers its size, None if another one has the name, or none.

        Another process may publish one at this moment.
        """
        aside = f"{self._mine}/{next(self._names)}"
        size = self._take(artifact_path(self.artifacts, key), aside, inode)
        if size is not None:
            os.unlink(aside)
        return size

    def delete(self, key: str) -> int | None:
        """Removes an artifact, whichever file it is; answers its size, None when there was none."""
        path = artifact_path(self.artifacts, key)
        try:
            size = os.stat(path).st_size
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        return size

    def size(self, key: str) -> int | None:
        """Size of the artifact's file in bytes, None when there is none."""
        file = self.open(key)
        if file is None:
            return None
        os.close(file.descriptor)
        return file.size

    def quarantine(self, key: str, inode: int) -> bool:
        """Moves a damaged file out of reach, for a person to look at; not one that has replaced it."""
        aside = f"{self._quarantine}/{uuid.uuid4().hex}-{quote(key, safe='')[-180:]}"
        return self._take(artifact_path(self.artifacts, key), aside, inode) is not None

    def _take(self, path: str, aside: str, inode: int) -> int | None:
        """Moves exactly this file aside; answers its size, None if another one has its name by now."""
        try:
            if os.stat(path).st_ino != inode:
                return None
            os.rename(path, aside)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        status = os.stat(aside)
        if status.st_ino == inode:
            return status.st_size
        # Another process gave the name to its file between the two: that gets it back, unless the name
        # has been given to a newer one since.
        with suppress(FileExistsError):
            os.link(aside, path)
        os.unlink(aside)
        return None

    def is_shared(self) -> bool:
        """Whether another living process works in the same data directory. Blocks."""
        others = (directory for directory in self._temporaries.iterdir() if directory != self._mine)
        return any(directory.is_dir() and not _is_abandoned(directory) for directory in others)


def _lock(directory: Path, flags: int = 0) -> int:
    """A descriptor that holds the directory's lock until it is closed, or the process dies."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_abandoned(directory: Path) -> bool:
    """Whether the process that made the directory is dead: nobody holds its lock."""
    try:
        os.close(_lock(directory, fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _with_parents(path: str, act: Callable[[], object]) -> bool:
    """Does `act`, and again after making the directories when it was they that were missing.

    Answers whether it made any.
    """
    try:
        act()
    except FileNotFoundError:
        make_directory(os.path.dirname(path))
        act()
        return True
    return False


def make_directory(path: str) -> None:
    """Makes it and those it is in; that it is there already is fine: somebody else may be making it."""
    try:
        _make_in_place(path)
    except FileNotFoundError:
        if not (above := os.path.dirname(path)):
            raise  # not even the directory that one is in
        make_directory(above)
        _make_in_place(path)


def _make_in_place(path: str) -> None:
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


def _remove_directory(path: str, key: str) -> None:
    """Of somebody else: the node makes none where artifacts lie. What is in it may be dear to them."""
    try:
        Path(path).rmdir()
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise DataDirectoryError(
            f"artifacts/{key} in the data directory is a directory with something in it: move it away"
        ) from error


def is_full(error: OSError) -> bool:
    """Whether the file system had no room (or no quota) left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)

"""Files of artifacts: written under a temporary name, published at once and whole, opened, deleted.

Everything here blocks and is called from the disk's threads, but for `open`, which is quick.
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
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from undercroft.durable import sync_directory
from undercroft.errors import ClosedError, DataDirectoryError
from undercroft.storage.layout import artifact_path

READ_BYTES = 1 << 20

# A link is not followed, and a pipe not waited for, which would take the event loop along: neither is a
# file of ours.
OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

# What a symbolic link, a socket and a device without a driver answer to that.
NO_FILE = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV})


class OpenFile(NamedTuple):
    """An open file; whoever has it closes the descriptor."""

    descriptor: int
    size: int
    inode: int
    modified_ns: int


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

    def finish(self, *, fsync: bool) -> int:
        """Closes the file and answers its inode."""
        try:
            if fsync:
                os.fsync(self._descriptor)
            return os.fstat(self._descriptor).st_ino
        finally:
            self._close()

    def discard(self) -> None:
        """Removes the temporary name, whatever became of the file. Idempotent."""
        self._close()
        if self.path:
            Path(self.path).unlink(missing_ok=True)
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
        self._fsync = fsync

    def open_directories(self) -> None:
        """Makes the directories, sweeps up after dead processes. Raises `DataDirectoryError`."""
        try:
            for directory in (self.artifacts, self._quarantine, self._temporaries):
                directory.mkdir(parents=True, exist_ok=True)
            self._claim()
        except OSError as error:
            raise DataDirectoryError(
                f"cannot use {error.filename or self.artifacts}: {error.strerror}; "
                "choose another data directory or mend its permissions"
            ) from error

    def _claim(self) -> None:
        # One process at a time: a directory that is made and not locked yet looks abandoned.
        turn = _lock(self._temporaries)
        try:
            self._mine.mkdir()
            self._lock = _lock(self._mine)
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
            _with_parents(final, lambda: os.link(temporary.path, final))
        except FileExistsError:
            return False
        self._make_durable(final)
        return True

    def publish_over(self, temporary: TemporaryFile, key: str) -> None:
        """Gives a finished file its final name, in the place of whatever has it, at once.

        An empty directory is no artifact and makes way. Raises OSError, then the old file is there as
        before, or none; `DataDirectoryError` if there is a directory with something in it.
        """
        final = artifact_path(self.artifacts, key)
        try:
            _with_parents(final, lambda: Path(temporary.path).replace(final))
        except IsADirectoryError:
            _remove_directory(final, key)
            Path(temporary.path).replace(final)
        temporary.path = ""
        self._make_durable(final)

    def _make_durable(self, final: str) -> None:
        if not self._fsync:
            return
        try:
            sync_directory(Path(final).parent)
        except OSError:
            # A name that may vanish with the power was never promised to anybody.
            Path(final).unlink(missing_ok=True)
            raise

    def finish(self, temporary: TemporaryFile) -> int:
        """Closes a temporary file, through to the medium if so set; answers its inode."""
        return temporary.finish(fsync=self._fsync)

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
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            return None
        return OpenFile(descriptor, status.st_size, status.st_ino, status.st_mtime_ns)

    def delete(self, key: str) -> int | None:
        """Removes an artifact; answers its size, None when there was none."""
        path = Path(artifact_path(self.artifacts, key))
        try:
            size = path.stat().st_size
            path.unlink()
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
        path = Path(artifact_path(self.artifacts, key))
        try:
            if path.stat().st_ino != inode:
                return False
            path.replace(self._quarantine / f"{uuid.uuid4().hex}-{quote(key, safe='')[-180:]}")
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_shared(self) -> bool:
        """Whether another living process works in the same data directory. Blocks."""
        others = (directory for directory in self._temporaries.iterdir() if directory != self._mine)
        return any(directory.is_dir() and not _is_abandoned(directory) for directory in others)


def sha256_of(file: OpenFile) -> str:
    """SHA-256 of an open file, 64 lowercase hex digits. Blocks."""
    digest = hashlib.sha256()
    for offset in range(0, file.size, READ_BYTES):
        digest.update(os.pread(file.descriptor, READ_BYTES, offset))
    return digest.hexdigest()


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


def _with_parents(path: str, act: Callable[[], object]) -> None:
    """Does `act`, and again after making the directories when it was they that were missing."""
    try:
        act()
    except FileNotFoundError:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        act()


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


class Identity(NamedTuple):
    """Tells a file from every other that ever had its name, as long as it is held open."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    """When it last got or lost a name, among other things. Unlike `modified_ns` nobody can set it."""

    @staticmethod
    def of(status: os.stat_result) -> "Identity":
        """What the system says of a file."""
        return Identity(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class CheckedFile:
    """A file that is held open while it is looked at. Leave it by `close`, whatever happened."""

    identity = Identity(0, 0, 0, 0)

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = -1
        self._drop_cache = False

    def open(self) -> bool:
        """Opens it; answers whether it is there. Raises OSError, also for what is no regular file. Blocks."""
        try:
            self._descriptor = os.open(self.path, OPEN_FLAGS)
        except (FileNotFoundError, NotADirectoryError):
            return False
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", self.path)
        self.identity = Identity.of(status)
        # Whoever reads a file begins at its beginning: if that is not in memory nobody did lately.
        self._drop_cache = not _is_cached(self._descriptor)
        return True

    @property
    def file(self) -> OpenFile:
        """The same for who serves it."""
        found = self.identity
        return OpenFile(self._descriptor, found.size, found.inode, found.modified_ns)

    def is_still_there(self) -> bool:
        """Whether this very file, unchanged, still has its name. Raises OSError. Blocks."""
        return identity_at(self.path) == self.identity

    def hash_piece(self, digest: "hashlib._Hash", offset: int, length: int) -> int:
        """Adds a piece to a digest; answers its bytes, 0 at the end. Raises OSError. Blocks."""
        piece = os.pread(self._descriptor, length, offset)
        digest.update(piece)
        if self._drop_cache:
            # What nobody asked for must not push out of memory what is asked for.
            os.posix_fadvise(self._descriptor, offset, len(piece), os.POSIX_FADV_DONTNEED)
        return len(piece)

    def close(self) -> None:
        """Closes it. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def identity_at(path: str) -> Identity | None:
    """The identity of what has this name now, links not followed; None if nothing has. Blocks."""
    try:
        return Identity.of(os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_cached(descriptor: int) -> bool:
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True  # the file system cannot say: its memory is left alone
    return True

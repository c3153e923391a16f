"""Files of artifacts while they are open: for who serves them, and for who looks whether they are right."""

import errno
import hashlib
import os
import stat
from typing import NamedTuple

from undercroft.storage.label import Label, label_of

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


class FoundFile(NamedTuple):
    """A file that was looked at, and what it says of itself."""

    size: int
    inode: int
    modified_ns: int
    label: Label | None

    @property
    def fitting_label(self) -> Label | None:
        """The label if the file has its size."""
        return self.label if self.label is not None and self.label.size_bytes == self.size else None

    @staticmethod
    def of(file: OpenFile, label: Label | None) -> "FoundFile":
        """What is left to say of an open file when it is closed."""
        return FoundFile(file.size, file.inode, file.modified_ns, label)


def sha256_of(file: OpenFile) -> str:
    """SHA-256 of an open file, 64 lowercase hex digits. Blocks."""
    digest = hashlib.sha256()
    for offset in range(0, file.size, READ_BYTES):
        digest.update(os.pread(file.descriptor, READ_BYTES, offset))
    return digest.hexdigest()


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
    label: Label | None = None
    """What it says of itself."""

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
        self.label = label_of(self._descriptor)
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

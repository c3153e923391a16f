"""Bytes on their way in: a small body waits in memory, a large one flows into a temporary file."""

import enum
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from undercroft.errors import CapacityError, DigestMismatchError
from undercroft.storage.disk import Disk, TemporaryFile, is_full
from undercroft.storage.open_file import FoundFile

# Handing bytes to a thread costs the same whatever their number. Up to this size a whole
# upload takes one hand-over; of a larger one no more than this is ever in memory.
SPOOL_BYTES = 256 << 10


class Upload:
    """One artifact being received. Leave it by `discard`, whatever happened."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._file: TemporaryFile | None = None
        self._spool: list[bytes] = []
        self._spooled = 0
        self.size = 0
        self._proven_size = -1
        self._finished: FoundFile | None = None
        self.published: FoundFile | None = None
        """The file once it has its final name."""

    def add(self, chunk: bytes) -> bool:
        """Takes a chunk; answers whether it is time for `write_out`."""
        self._spool.append(chunk)
        self._spooled += len(chunk)
        self.size += len(chunk)
        return self._spooled >= SPOOL_BYTES

    @property
    def on_disk(self) -> bool:
        """Whether there is a file to discard."""
        return self._file is not None

    def write_out(self) -> int:
        """Writes what waits in memory to the temporary file; answers how much. Blocks; raises OSError."""
        if self._file is None:
            self._file = self._disk.temporary()
        self._file.write(b"".join(self._spool))
        self._spool.clear()
        written, self._spooled = self._spooled, 0
        return written

    @property
    def is_proven(self) -> bool:
        """Whether all bytes are in a file, and those that were expected."""
        return self._proven_size == self.size

    def open_for_reading(self) -> int:
        """A descriptor of the temporary file, for who reads along; it outlives the name."""
        assert self._file is not None  # noqa: S101  # only asked for after write_out
        return os.open(self._file.path, os.O_RDONLY | os.O_CLOEXEC)

    def finish(self, expected_sha256: str | None, stored_at: int) -> tuple[TemporaryFile, FoundFile]:
        """Writes the rest; answers the closed file, which says when it was stored, and what it is. Blocks.

        Raises `DigestMismatchError` if the bytes are not those the client announced, OSError.
        """
        file = self._whole(expected_sha256)
        self._finished = self._disk.finish(file, stored_at)
        return file, self._finished

    @property
    def finished_file(self) -> TemporaryFile:
        """What `finish` closed, while it has no final name."""
        assert self._file is not None  # noqa: S101  # finish had it
        return self._file

    def publish_new(self, key: str) -> bool:
        """Gives the finished file its final name unless somebody has it; answers whether it did. Blocks.

        Raises like `Disk.publish_new`.
        """
        if not self._disk.publish_new(self.finished_file, key):
            return False
        self.published = self._finished
        self.discard()
        return True

    def publish_over(self, key: str) -> None:
        """Gives the finished file its name, whatever has it. Blocks; raises like `Disk.publish_over`."""
        self._disk.publish_over(self.finished_file, key)
        self.published = self._finished
        self._file = None  # there is nothing left to discard

    def _whole(self, expected_sha256: str | None) -> TemporaryFile:
        self.write_out()
        assert self._file is not None  # noqa: S101  # write_out made it
        if expected_sha256 is not None and self._file.digest() != expected_sha256:
            raise DigestMismatchError(
                f"the body has SHA-256 {self._file.digest()} and was announced with {expected_sha256}: "
                "nothing was stored"
            )
        self._proven_size = self.size
        return self._file

    def prove(self, expected_sha256: str | None) -> int:
        """Writes the rest, if it is what was expected; answers how much. Blocks; raises like `finish`."""
        rest = self._spooled
        self._whole(expected_sha256)
        return rest

    def pause(self, expected_sha256: str | None) -> int:
        """Like `prove`, and gives the descriptor back until `resume`. Blocks; raises like `finish`."""
        rest = self._spooled
        self._whole(expected_sha256).pause()
        return rest

    def resume(self) -> None:
        """Goes on after a `pause`. Blocks; raises OSError."""
        assert self._file is not None  # noqa: S101  # pause had it
        self._file.resume()

    def append(self, other: "Upload") -> None:
        """Takes over the bytes of a paused upload, and discards it. Blocks; raises OSError."""
        assert self._file is not None  # noqa: S101  # resume had it
        assert other._file is not None  # noqa: S101  # it is paused
        self._file.append(other._file)
        self.size += other.size
        other.discard()

    def discard(self) -> None:
        """Removes the temporary file. Idempotent."""
        if self._file is not None:
            self._file.discard()
            self._file = None


@contextmanager
def told_of_no_room(upload: Upload) -> Iterator[None]:
    """Turns what the file system says when it is full into `CapacityError`."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise CapacityError(f"no room on the disk for {upload.size} bytes now: {error}") from error
        raise


class Stored(enum.Enum):
    """What became of an upload."""

    CREATED = "created"
    REPLACED = "replaced"
    EXISTS = "exists"


async def no_eviction(_size: int) -> bool:
    """Makes no room."""
    return False


def nobody(*_: object) -> None:
    """Hears nothing."""


class Origin(NamedTuple):
    """Who wrote an artifact, with which tool and client; None where nobody said."""

    written_by: str | None = None
    tool: str | None = None
    user_agent: str | None = None


UNKNOWN_ORIGIN = Origin()


@dataclass
class Arrival:
    """One artifact on its way in, and what is asked of it."""

    key: str
    upload: Upload
    replace: bool
    expected_sha256: str | None
    origin: Origin = UNKNOWN_ORIGIN
    from_object_store: bool = False
    """Then it need not be uploaded to where it comes from."""
    check: Callable[[], None] = nobody
    """Raises if the artifact is not wanted any more; asked right before it gets its name."""
    on_written: Callable[[], None] = nobody
    """Told each time that more of it can be read in the upload's file."""

"""Room for artifacts: reserved before a byte is written. Arithmetic, and one question to the file system."""

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from undercroft.errors import CapacityError, TooLargeError
from undercroft.storage.books import Books, OwnBooks


class Volume(NamedTuple):
    """What the file system says: bytes in use and free to us together, and free; the same of files.

    What is kept for the administrator is neither, so that percentages are those of `df`. 0 files: any number.
    """

    total: int
    free: int
    files: int = 0
    free_files: int = 0


def volume_of(path: Path) -> Callable[[], Volume]:
    """A question to the file system that holds `path` (statvfs, about a microsecond)."""

    def ask() -> Volume:
        answer = os.statvfs(path)
        size = answer.f_frsize
        blocks = answer.f_blocks - answer.f_bfree + answer.f_bavail
        return Volume(blocks * size, answer.f_bavail * size, answer.f_files, answer.f_favail)

    return ask


class Capacity:
    """Two limits that are never exceeded: bytes of artifacts, and how full the volume may become.

    `books` keep what published artifacts take, and what uploads in progress may yet take.
    """

    def __init__(
        self,
        volume: Callable[[], Volume],
        limit_bytes: int | None,
        limit_percent: float,
        books: Books | None = None,
    ) -> None:
        """Without `books` this process is taken to be alone."""
        self._volume = volume
        self._limit_bytes = limit_bytes
        self._limit_percent = limit_percent
        self.books: Books = OwnBooks() if books is None else books

    @property
    def used(self) -> int:
        """What published artifacts take."""
        return self.books.used

    @property
    def reserved(self) -> int:
        """What uploads in progress may yet take."""
        return self.books.reserved

    @property
    def written(self) -> int:
        """What of the reserved bytes uploads have written: the file system counts those already."""
        return self.books.written

    def limit(self) -> int:
        """The most that artifacts may ever take, in bytes."""
        by_volume = int(self._volume().total * self._limit_percent / 100)
        return by_volume if self._limit_bytes is None else min(by_volume, self._limit_bytes)

    def reserve(self, size: int) -> "Reservation":
        """Room for `size` bytes; raises `TooLargeError` if they can never fit, `CapacityError` if not now."""
        reservation = Reservation(self)
        reservation.grow(size)
        return reservation

    def take(self, size: int, held: int = 0) -> None:
        """Reserves `size` bytes more for an upload that holds `held`, or raises; see `reserve`."""
        with self.books.alone():
            if size > self.room():
                self._refuse(held + size)
            self.books.hold(size)

    def room(self) -> int:
        """Bytes that are not used, not kept free, and not reserved; negative above a limit."""
        return self._room(lambda: self.books.used)

    def room_to_come(self, unlinked: int) -> int:
        """The same when all deletes are done: those that wait for their commit, too.

        `unlinked` are bytes of deleted files that the file system has yet to give back.
        """
        return self._room(lambda: self.books.present, unlinked)

    def _room(self, used: Callable[[], int], unlinked: int = 0) -> int:
        # In this order: siblings write and commit without a lock, and what they do in between counts twice,
        # never not at all.
        reserved = self.reserved
        to_come = reserved - self.written
        by_bytes = None if self._limit_bytes is None else self._limit_bytes - used() - reserved
        total, free = self._volume()[:2]
        kept_free = int(total * (100 - self._limit_percent) / 100)
        by_volume = free + unlinked - kept_free - to_come
        return by_volume if by_bytes is None else min(by_volume, by_bytes)

    @property
    def awaits_commit(self) -> bool:
        """Whether there will be more room as soon as what was deleted is committed."""
        return self.books.present < self.books.used

    def excess(self, percent: float, to_come: int = 0) -> int:
        """Bytes above `percent` of the bound on artifacts or of the volume, whichever is more; 0 below both.

        What uploads have reserved counts as if it were written; `to_come` is `unlinked` in `room_to_come`.
        """
        total, free = self._volume()[:2]
        occupied = total - free - to_come + self.reserved - self.written
        excess = occupied - int(total * percent / 100)
        if self._limit_bytes is not None:
            taken = self.books.present + self.reserved
            excess = max(excess, taken - int(self._limit_bytes * percent / 100))
        return max(excess, 0)

    def excess_files(self, percent: float) -> int:
        """Files and directories (inodes) on the volume above `percent` of what it can hold; 0 below.

        Many small artifacts use these up long before the bytes.
        """
        volume = self._volume()
        return max(volume.files - volume.free_files - int(volume.files * percent / 100), 0)

    def unexplained(self) -> int:
        """Bytes taken on the volume by what is no artifact and no upload: deleted files still open, too.

        Only good for comparison: blocks are larger than what is in them.
        """
        total, free = self._volume()[:2]
        return total - free - self.books.present - self.written

    def _refuse(self, size: int) -> None:
        if size > self.limit():
            raise TooLargeError(f"{size} bytes can never fit: the node keeps at most {self.limit()} bytes")
        raise CapacityError(f"no room for {size} bytes now: {self.used} bytes used, {self.reserved} reserved")


class Reservation:
    """Room held for one upload. Leaving its `with` block gives back what was not published."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._books = capacity.books
        self.size = 0
        self._written = 0

    def grow(self, size: int) -> None:
        """Holds `size` bytes more; raises like `Capacity.reserve`."""
        self._capacity.take(size, self.size)
        self.size += size

    def wrote(self, size: int) -> None:
        """So many more bytes are in the file by now."""
        self._written += size
        self._books.wrote(size)

    def published(self, size: int, replaced: int = 0) -> None:
        """The upload became an artifact of `size` bytes in the place of one of `replaced` bytes."""
        self._books.published(size, replaced)
        self.release()

    def release(self) -> None:
        """Gives the room back. Idempotent."""
        self._books.let_go(self.size, self._written)
        self.size = self._written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

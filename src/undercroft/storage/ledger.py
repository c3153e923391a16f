"""Numbers that several worker processes share: a row for each in memory that all of them have mapped."""

import enum
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self


class Entry(enum.IntEnum):
    """What a worker's row says."""

    RESERVED = 0
    """Bytes held for its uploads, and for what it published until that is committed."""
    WRITTEN = 1
    """What of those the file system counts already."""
    FREED = 2
    """Bytes of files it deleted whose rows are not deleted yet."""
    SERVES = 3
    """1 while it does."""
    STARTS = 4
    """How many processes have had the place."""


BYTES_EACH = 8


class Ledger:
    """Made by the parent, before there are workers; each writes its own row only.

    A number is eight aligned bytes, which no reader sees half written. The lock is a process's own, and
    goes with it.
    """

    def __init__(self, descriptor: int, workers: int) -> None:
        """Of a file that has room for it; see `create`."""
        self._descriptor = descriptor
        self._workers = workers
        self._memory = memoryview(mmap.mmap(descriptor, _size(workers))).cast("q")

    @classmethod
    def create(cls, workers: int) -> Self:
        """A new one, in memory only. Raises OSError."""
        descriptor = os.memfd_create("undercroft-ledger", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _size(workers))
        return cls(descriptor, workers)

    def get(self, worker: int, entry: Entry) -> int:
        """A number of a worker's."""
        return self._memory[worker * len(Entry) + entry]

    def set(self, worker: int, entry: Entry, value: int) -> None:
        """Changes a number of a worker's: by itself, or by the parent when it is dead."""
        self._memory[worker * len(Entry) + entry] = value

    def total(self, entry: Entry) -> int:
        """The sum over all workers."""
        return sum(self._memory[entry :: len(Entry)])

    def column(self, entry: Entry) -> list[int]:
        """The numbers of all workers, in their order."""
        return list(self._memory[entry :: len(Entry)])

    def clear(self, worker: int) -> None:
        """Gives back what was held by the one that had the place before. Its temporary files are gone."""
        for entry in (Entry.SERVES, Entry.FREED, Entry.WRITTEN, Entry.RESERVED):
            self.set(worker, entry, 0)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While nobody else is in here. Blocks, for as long as a few numbers are added up."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


def _size(workers: int) -> int:
    return workers * len(Entry) * BYTES_EACH

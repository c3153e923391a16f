"""What artifacts and uploads take, in bytes: kept by one process alone, or by several together."""

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from undercroft.storage.ledger import Entry, Ledger


class Books(Protocol):
    """The sums that `Capacity` goes by. Only the event loop changes them."""

    worker: int
    """Whose they are, 0 for one process alone."""

    @property
    def used(self) -> int:
        """What published artifacts take, or more, until it is committed that some are gone."""
        ...

    @property
    def present(self) -> int:
        """The same without those whose files are deleted already; less for a moment where two delete one."""
        ...

    @property
    def reserved(self) -> int:
        """What uploads in progress may yet take, and others published since the last commit."""
        ...

    @property
    def written(self) -> int:
        """What of the reserved bytes the file system counts already."""
        ...

    def open(self, committed: Callable[[], int]) -> None:
        """Before anything else; `committed` reads what the artifacts take that have a row. Blocks."""
        ...

    def alone(self) -> AbstractContextManager[None]:
        """While nobody else reserves."""
        ...

    def hold(self, size: int) -> None:
        """Reserves, without asking whether there is room."""
        ...

    def wrote(self, size: int) -> None:
        """So many of the reserved bytes are in a file by now."""
        ...

    def let_go(self, size: int, written: int) -> None:
        """Reserved bytes are not needed any more, of which so many were written."""
        ...

    def published(self, size: int, replaced: int) -> None:
        """There is another artifact, in the place of one of `replaced` bytes; its row was enqueued."""
        ...

    def forgot(self, size: int, *, removed: bool) -> None:
        """There is one less; the delete of its row was enqueued. `removed`: its file, by this process."""
        ...


class OwnBooks:
    """Those of one process: what is pending counts at once."""

    worker = 0

    def __init__(self) -> None:
        self.used = self.reserved = self.written = 0

    @property
    def present(self) -> int:
        """The same as `used`."""
        return self.used

    def open(self, committed: Callable[[], int]) -> None:
        """Asks once."""
        self.used = committed()

    def alone(self) -> AbstractContextManager[None]:
        """Nobody else is there."""
        return nullcontext()

    def hold(self, size: int) -> None:
        """See `Books`."""
        self.reserved += size

    def wrote(self, size: int) -> None:
        """See `Books`."""
        self.written += size

    def let_go(self, size: int, written: int) -> None:
        """See `Books`."""
        self.reserved -= size
        self.written -= written

    def published(self, size: int, replaced: int) -> None:
        """See `Books`."""
        self.used += size - replaced

    def forgot(self, size: int, *, removed: bool) -> None:  # noqa: ARG002  # there is nobody else
        """See `Books`."""
        self.used -= size


class SharedBooks:
    """Those of several workers: what is used is what the database says, which all of them see.

    What one published stays reserved until its row is committed, what it deleted stays used until then. So
    a sum may be too large for a moment and never too small, and when a worker dies there is nothing to set
    right but its row of the ledger: no sum is kept that would have lost its way.
    """

    def __init__(self, ledger: Ledger, worker: int, newest_generation: Callable[[], int]) -> None:
        """`newest_generation` of the buffer of artifacts: the one that carries what was enqueued last."""
        self._ledger = ledger
        self.worker = worker
        self._newest = newest_generation
        self._committed: Callable[[], int] = lambda: 0
        # What each generation will settle: its number, bytes published, bytes deleted.
        self._uncommitted: deque[tuple[int, int, int]] = deque()

    def open(self, committed: Callable[[], int]) -> None:
        """See `Books`."""
        self._committed = committed

    @property
    def used(self) -> int:
        """One point query."""
        return self._committed()

    @property
    def present(self) -> int:
        """One point query."""
        return max(self._committed() - self._ledger.total(Entry.FREED), 0)

    @property
    def reserved(self) -> int:
        """Of all workers."""
        return self._ledger.total(Entry.RESERVED)

    @property
    def written(self) -> int:
        """Of all workers."""
        return self._ledger.total(Entry.WRITTEN)

    def alone(self) -> AbstractContextManager[None]:
        """Of all workers."""
        return self._ledger.alone()

    def _add(self, entry: Entry, size: int) -> None:
        self._ledger.set(self.worker, entry, self._ledger.get(self.worker, entry) + size)

    def hold(self, size: int) -> None:
        """See `Books`."""
        self._add(Entry.RESERVED, size)

    def wrote(self, size: int) -> None:
        """See `Books`."""
        self._add(Entry.WRITTEN, size)

    def let_go(self, size: int, written: int) -> None:
        """In this order: for who reads in between it is too much that is to be written, never too little."""
        self._add(Entry.WRITTEN, -written)
        self._add(Entry.RESERVED, -size)

    def published(self, size: int, replaced: int) -> None:  # noqa: ARG002  # the old one counts until then
        """See the class."""
        # For who reserves in between it would be too little that is to be written.
        with self.alone():
            self.hold(size)
            self.wrote(size)
        self._uncommitted.append((self._newest(), size, 0))

    def forgot(self, size: int, *, removed: bool) -> None:
        """See the class. Where the file was gone already, whoever removed it has said so."""
        if removed:
            self._add(Entry.FREED, size)
            self._uncommitted.append((self._newest(), 0, size))

    def on_committed(self, generation: int) -> None:
        """What was enqueued up to this generation is in the database now."""
        while self._uncommitted and self._uncommitted[0][0] <= generation:
            _, published, freed = self._uncommitted.popleft()
            self.let_go(published, published)
            self._add(Entry.FREED, -freed)

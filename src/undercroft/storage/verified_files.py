"""Which files were found to be what their rows say, so that they need not be asked about again."""

import threading
from typing import Generic, TypeVar

import msgspec

from undercroft.storage.open_file import FoundFile, OpenFile
from undercroft.storage.witnesses import Row

# About 300 bytes each. Files beyond that are looked up in the database again, which is only slower.
MAX_FILES = 100_000


RowT = TypeVar("RowT", bound=Row)


# Not looked at by the garbage collector: a full collection held the loop up for 12 ms at 34,000 of them.
class _Verified(msgspec.Struct, Generic[RowT], frozen=True, gc=False):
    inode: int
    modified_ns: int
    row: RowT
    surely: bool


class VerifiedFiles(Generic[RowT]):
    """Remembers the row of a file by the file's own identity: inode, size and time of last change.

    A file that was replaced by another process has another identity; what this process changes it
    says with `forget`, since file systems use inodes again. The disk's threads add files, too.
    """

    def __init__(self) -> None:
        self._adding = threading.Lock()
        self._files: dict[str, _Verified[RowT]] = {}

    def row(self, key: str, file: OpenFile, *, surely: bool = False) -> RowT | None:
        """The row of exactly this file, None when it was not verified yet.

        `surely`: what was verified by its size alone does not count.
        """
        known = self._files.get(key)
        if known is None or (known.inode, known.modified_ns) != (file.inode, file.modified_ns):
            return None
        if surely and not known.surely:
            return None
        return known.row if known.row.size_bytes == file.size else None

    def add(self, file: OpenFile | FoundFile, row: RowT, *, surely: bool = True) -> None:
        """Remembers; forgets the file that was added first when there are too many.

        Not `surely`: by its size alone, though its row says more.
        """
        with self._adding:
            self._files.pop(row.key, None)
            self._files[row.key] = _Verified(file.inode, file.modified_ns, row, surely)
            if len(self._files) > MAX_FILES:
                del self._files[next(iter(self._files))]

    def update(self, row: RowT, newer: RowT) -> None:
        """Puts `newer` in the place of a row that is remembered, if it is still that one."""
        with self._adding:
            known = self._files.get(row.key)
            if known is not None and known.row is row:
                self._files[row.key] = msgspec.structs.replace(known, row=newer)

    def forget(self, key: str) -> None:
        """Forgets a file that is gone."""
        with self._adding:
            self._files.pop(key, None)

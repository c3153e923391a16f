"""Healing: bytes that are there already are sent again, and what lies there may have been damaged since."""

import os
from typing import Generic

import structlog

from undercroft.storage.disk import Disk, OpenFile, TemporaryFile, sha256_of
from undercroft.storage.verified_files import RowT, VerifiedFiles

log = structlog.get_logger(__name__)


class Healing(Generic[RowT]):
    """Decides what stays. Who sends an artifact again may do so because the one that is there is damaged.

    Everything here blocks, and is for one task at a time with each key.
    """

    def __init__(self, disk: Disk, verified: VerifiedFiles[RowT]) -> None:
        self._disk = disk
        self._verified = verified

    def stays(self, row: RowT, body: TemporaryFile, *, hash_up_to: int) -> bool:
        """Whether the file under the key of the row stays, rather than to be replaced by the finished `body`.

        It does if it is what its row says. A file of at most `hash_up_to` bytes is read to find out, unless
        somebody did before; it goes into quarantine if it is not. A larger one is not read: if the body has
        the digest of the row, it takes the file's place at once, and the row stays right. If it has not,
        the file stays for its size, for which it is served, too. Raises OSError.
        """
        file = self._disk.open(row.key)
        if file is None:
            return False
        try:
            if file.size != row.size_bytes:
                return False
            if row.content_sha256 is None or self._verified.row(row.key, file, surely=True) is not None:
                return True
            if file.size <= hash_up_to:
                return self._is_whole(row, file)
        finally:
            os.close(file.descriptor)
        if body.digest() == row.content_sha256:
            self._trade(row, body)
        return True

    def _is_whole(self, row: RowT, file: OpenFile) -> bool:
        try:
            whole = sha256_of(file) == row.content_sha256
        except OSError:
            # A reader would be told. Here are the bytes that heal it.
            whole = False
        if whole:
            self._verified.add(file, row)
        else:
            log.error("artifact_damaged", key=row.key, size=file.size, expected_size=row.size_bytes)
            self._disk.quarantine(row.key, file.inode)
        return whole

    def _trade(self, row: RowT, body: TemporaryFile) -> None:
        self._disk.publish_over(body, row.key)
        file = self._disk.open(row.key)
        if file is not None:
            os.close(file.descriptor)
            self._verified.add(file, row)

"""Healing: bytes that are there already are sent again, and what lies there may have been damaged since."""

import os
from typing import Generic, NamedTuple

import structlog

from undercroft.storage.disk import Disk, TemporaryFile
from undercroft.storage.label import label_of
from undercroft.storage.open_file import FoundFile, OpenFile, sha256_of
from undercroft.storage.verified_files import RowT, VerifiedFiles
from undercroft.storage.witnesses import Witness, Witnesses

log = structlog.get_logger(__name__)


class Standing(NamedTuple):
    """The file that keeps a name, with its label if its own word was taken; `proven`: by its bytes."""

    file: FoundFile
    proven: bool


class Healing(Generic[RowT]):
    """Decides what stays. Who sends an artifact again may do so because the one that is there is damaged.

    Everything here blocks, and is for one task at a time with each key.
    """

    def __init__(self, disk: Disk, verified: VerifiedFiles[RowT]) -> None:
        self._disk = disk
        self._verified = verified

    def standing(
        self, key: str, row: RowT | None, body: TemporaryFile, *, hash_up_to: int
    ) -> Standing | None:
        """What stays under the key, rather than to be replaced by the finished `body`; None if that has to.

        A file stays if it is what its row, or it itself, says. One of at most `hash_up_to` bytes is read to
        find out, unless somebody did before; it goes into quarantine if it is not. A larger one is not read:
        if the body has the digest it is said to have, it takes the file's place at once. If it has not, the
        file stays for its size, for which it is served, too. Raises OSError.
        """
        file = self._disk.open(key)
        if file is None:
            return None
        try:
            said = Witnesses(row, label_of(file.descriptor), file.size)
            if row is not None and self._verified.row(key, file, surely=True) is not None:
                return Standing(FoundFile.of(file, None), proven=True)
            proven = said.can_be_proven and (file.size <= hash_up_to or said.must_be_proven)
            witness = self._proven(key, said, file) if proven else said.by_size(self._disk.boot)
        finally:
            os.close(file.descriptor)
        if witness not in (Witness.ROW, Witness.LABEL):
            return None
        vouching = said.label if witness is Witness.LABEL else said.row
        if not proven and vouching is not None and body.digest() == vouching.content_sha256:
            return self._trade(key, body)
        return Standing(FoundFile.of(file, said.label if witness is Witness.LABEL else None), proven)

    def _proven(self, key: str, said: Witnesses, file: OpenFile) -> Witness:
        try:
            witness = said.by_digest(sha256_of(file))
        except OSError:
            # A reader would be told. Here are the bytes that heal it.
            witness = Witness.CONTRADICTED
        if witness is Witness.CONTRADICTED:
            expected = None if said.row is None else said.row.size_bytes
            log.error("artifact_damaged", key=key, size=file.size, expected_size=expected)
            self._disk.quarantine(key, file.inode)
        return witness

    def _trade(self, key: str, body: TemporaryFile) -> Standing | None:
        self._disk.publish_over(body, key)
        file = self._disk.look(key)
        return None if file is None else Standing(file, proven=True)

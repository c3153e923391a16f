"""Rows without files, and files that are not what their rows say."""

from functools import partial

import apsw

from undercroft.artifact_rows import agrees
from undercroft.artifacts import CacheArtifacts
from undercroft.buffers.cache_artifacts import ArtifactAccess
from undercroft.database import Database
from undercroft.s3.transfers import S3Transfers
from undercroft.storage.disk import Disk
from undercroft.storage.layout import artifact_path
from undercroft.storage.open_file import CheckedFile, FoundFile, identity_at
from undercroft.storage.tree import is_artifact_key
from undercroft.storage.witnesses import Witness, Witnesses
from undercroft.workers.pace import Pace, PacedDigest
from undercroft.workers.reconcile_round import Round

# Keys read at once.
SLICE_ROWS = 200


class RowCheck:
    """Looks at the file of every row, and at its bytes where their digest is known.

    A row whose file is gone is forgotten, one whose file is another, whole one by its own word is made that
    one's. A file that contradicts its row goes into quarantine. What the object store has can be fetched
    again: the first when it is asked for, the last at once.
    """

    def __init__(
        self,
        artifacts: CacheArtifacts,
        disk: Disk,
        database: Database,
        transfers: S3Transfers | None,
        *,
        digests: PacedDigest,
        pace: Pace,
    ) -> None:
        """`transfers` if there is an object store to fetch from."""
        self._artifacts = artifacts
        self._disk = disk
        self._database = database
        self._transfers = transfers
        self._digests = digests
        self._pace = pace

    async def run(self, round_: Round, after: str) -> None:
        """Goes through the rows behind the key `after`; "" for all. Raises `apsw.Error`, `ClosedError`."""
        while keys := await self._database.read(partial(_keys, after=after)):
            for key in keys:
                await self._pace.take(1)
                round_.rows += 1
                await round_.attempt(key, self._check(round_, key))
            after = keys[-1]
            await round_.come_to("rows", after)

    async def _check(self, round_: Round, key: str) -> None:
        if not is_artifact_key(tuple(key.split("/"))):
            round_.tell_foreign(key)
            return
        # What was read with the slice may be old, and what is pending counts.
        row = self._artifacts.find(key)
        if row is None:
            return
        file = CheckedFile(artifact_path(self._disk.artifacts, key))
        try:
            if not await self._artifacts.threads.run(file.open):
                await self._forget(round_, key)
                return
            witness = await self._witness(row, file)
            if witness is Witness.CONTRADICTED:
                await self._set_aside(round_, row, file)
            elif witness is Witness.LABEL and file.label is not None and not agrees(row, file.label):
                await self._mend_row(round_, key, file)
            else:
                round_.tell("agrees")
        finally:
            file.close()

    async def _witness(self, row: ArtifactAccess, file: CheckedFile) -> Witness:
        """Who vouches for the file. Its bytes are read where that can tell, whatever their number."""
        said = Witnesses(row, file.label, file.identity.size)
        if said.can_be_proven:
            return said.by_digest(await self._digests.of(file))
        return said.by_size(self._disk.boot)

    async def _mend_row(self, round_: Round, key: str, file: CheckedFile) -> None:
        """Makes the row that of the file: whoever replaced it was killed before it was committed."""
        async with self._artifacts.alone(key):
            await self._artifacts.wait_for_room()
            if self._artifacts.take_at_its_word(key, FoundFile.of(file.file, file.label)):
                round_.tell("mended")

    async def _forget(self, round_: Round, key: str) -> None:
        """Forgets the row if the file is still missing now that nobody changes it."""
        async with self._artifacts.alone(key):
            row = self._artifacts.find(key)
            path = artifact_path(self._disk.artifacts, key)
            if row is None or await self._artifacts.threads.run(identity_at, path) is not None:
                return
            await self._artifacts.forget(row, removed=False)
        round_.tell("row_without_file")

    async def _set_aside(self, round_: Round, row: ArtifactAccess, file: CheckedFile) -> None:
        """Puts the file into quarantine if it really contradicts its row, and has the object fetched.

        While it is replaced the file is new and the row old for a moment, but not without the lock.
        """
        async with self._artifacts.alone(row.key):
            now = self._artifacts.find(row.key)
            same = now is not None and _content(now) == _content(row)
            if not same or not await self._artifacts.threads.run(file.is_still_there):
                return
        await self._artifacts.quarantine(row.key, row, file.file)
        if self._artifacts.find(row.key) is not None:
            return  # replaced since
        round_.tell("damaged")
        if self._transfers is not None:
            await self._transfers.enqueue_download(row.key)


def _content(row: ArtifactAccess) -> tuple[int, str | None]:
    return row.size_bytes, row.content_sha256


def _keys(connection: apsw.Connection, after: str) -> list[str]:
    return [key for (key,) in connection.execute(NEXT_KEYS, (after, SLICE_ROWS))]


NEXT_KEYS = "SELECT key FROM cache_artifacts WHERE key > ? ORDER BY key LIMIT ?"

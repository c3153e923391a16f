"""Rows without files, and files that are not what their rows say."""

from functools import partial

import apsw

from undercroft.artifacts import CacheArtifacts
from undercroft.buffers.cache_artifacts import ArtifactAccess
from undercroft.database import Database
from undercroft.s3.transfers import S3Transfers
from undercroft.storage.disk import CheckedFile, Disk, identity_at
from undercroft.storage.layout import artifact_path
from undercroft.storage.tree import is_artifact_key
from undercroft.workers.pace import Pace, PacedDigest
from undercroft.workers.reconcile_round import Round

# Keys read at once.
SLICE_ROWS = 200


class RowCheck:
    """Looks at the file of every row, and at its bytes where their digest is known.

    A row whose file is gone is forgotten, a file that contradicts its row goes into quarantine. What the
    object store has can be fetched again: the first when it is asked for, the other at once.
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
            elif await self._agrees(row, file):
                round_.tell("agrees")
            else:
                await self._set_aside(round_, row, file)
        finally:
            file.close()

    async def _agrees(self, row: ArtifactAccess, file: CheckedFile) -> bool:
        if row.size_bytes != file.identity.size:
            return False
        return row.content_sha256 is None or row.content_sha256 == await self._digests.of(file)

    async def _forget(self, round_: Round, key: str) -> None:
        """Forgets the row if the file is still missing now that nobody changes it."""
        async with self._artifacts.alone(key):
            row = self._artifacts.find(key)
            path = artifact_path(self._disk.artifacts, key)
            if row is None or await self._artifacts.threads.run(identity_at, path) is not None:
                return
            await self._artifacts.forget(row)
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
        await self._artifacts.quarantine(row, file.file)
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

"""What a transfer does: it makes the object store agree with what is here when its turn comes."""

import hashlib
import os
from typing import Literal, NamedTuple

import structlog

from undercroft.artifacts import CacheArtifacts
from undercroft.buffers.cache_artifacts import ArtifactAccess
from undercroft.errors import DigestMismatchError
from undercroft.hydration import Cleaning, Hydration, HydrationTimes, Outdated
from undercroft.s3.object_store import ObjectStore
from undercroft.s3.patience import in_time
from undercroft.s3.transfers import S3Transfers, Transfer
from undercroft.settings_sections import ObjectStoreSection
from undercroft.storage.disk import Disk
from undercroft.storage.label import label_of
from undercroft.storage.open_file import OpenFile
from undercroft.storage.witnesses import Witness, Witnesses

log = structlog.get_logger(__name__)

# Bytes may be damaged on their way. Whose digest is wrong this many times is given up for a while.
DIGEST_ATTEMPTS = 3

HASH_BYTES = 16 << 20


class Outcome(NamedTuple):
    """A transfer that is over. `answered` says whether the store was asked, and did."""

    result: Literal["moved", "skipped", "gone"]
    size: int = 0
    answered: bool = False


class Moves:
    """Does what rows ask for, each once. At most one at a time for a key."""

    def __init__(
        self,
        transfers: S3Transfers,
        artifacts: CacheArtifacts,
        disk: Disk,
        store: ObjectStore,
        *,
        settings: ObjectStoreSection,
        cleaning: Cleaning,
    ) -> None:
        self._transfers = transfers
        self._artifacts = artifacts
        self._disk = disk
        self._store = store
        self._cleaning = cleaning
        self._outdated = Outdated(transfers, cleaning)
        self._answer_s = settings.read_timeout_ms / 1_000
        times = HydrationTimes.of(settings)
        # Nobody waits for the first byte of a transfer.
        self._times = times._replace(first_byte_s=self._answer_s)

    async def make(self, transfer: Transfer) -> Outcome:
        """Raises what the store, the disk and the database raise; then it is to be made again."""
        if transfer.type == "upload":
            return await self._upload(transfer.key)
        if transfer.type == "download":
            return await self._download(transfer)
        return await self._delete(transfer.key)

    # --- uploads ----------------------------------------------------------------------------------

    async def _upload(self, key: str) -> Outcome:
        # Alone: between the rename of a new file and its row the two would not belong together.
        async with self._artifacts.alone(key):
            row = self._artifacts.find(key)
            file = self._disk.open(key)
        if file is None:
            return await self._gone(key, row)
        # The descriptor is what is uploaded: a file that takes the name meanwhile has a row of its own.
        with os.fdopen(file.descriptor, "rb") as body:
            label = label_of(file.descriptor)
            if row is None and label is None:
                return await self._gone(key, row)
            remote = await in_time(self._store.head(key), self._answer_s, f"the head of {key}")
            # Of every file, for all that its row says: a wrong object with the right digest beside it would
            # be taken for the right one by every upload to come.
            digest = await self._digest(file)
            if not _is_whole(Witnesses(row, label, file.size), digest):
                await self._artifacts.quarantine(key, row, file)
                return await self._gone(key, row)
            same = remote is not None and (remote.size, remote.content_sha256) == (file.size, digest)
            # What it says of itself is no proof once its bytes were seen to be others.
            if same and key not in self._transfers.wrong_objects:
                return Outcome("skipped", answered=True)
            await self._store.put(key, body, file.size, digest)
            self._transfers.wrong_objects.mended(key)
        return Outcome("moved", file.size, answered=True)

    async def _digest(self, file: OpenFile) -> str:
        digest = hashlib.sha256()

        def add(offset: int) -> None:
            digest.update(os.pread(file.descriptor, HASH_BYTES, offset))

        # Piece by piece: who is cancelled waits for the thread.
        for offset in range(0, file.size, HASH_BYTES):
            await self._artifacts.threads.run(add, offset)
        return digest.hexdigest()

    async def _gone(self, key: str, row: ArtifactAccess | None) -> Outcome:
        """What was to be uploaded was evicted, or is damaged: nobody has it any more.

        It was acknowledged, so what the store has under its key is older and would come back with the next
        miss. It goes, unless it is what the row tells of. Where somebody else sees to it, it is left alone:
        an artifact that was stored again has an upload of its own, a deleted one a delete; and of a project
        that is cleaned the objects go by their age, lest a newer one of another node goes with them.
        """
        if (
            self._artifacts.is_here(key)
            or self._transfers.is_queued("delete", key)
            or self._cleaning.is_being_cleaned(key)
        ):
            return Outcome("gone")
        remote = await in_time(self._store.head(key), self._answer_s, f"the head of {key}")
        if remote is None:
            return Outcome("gone", answered=True)
        digest = row.content_sha256 if row is not None else None
        if row is not None and digest and (remote.size, remote.content_sha256) == (row.size_bytes, digest):
            return Outcome("skipped", answered=True)
        log.info("older_object_deleted", key=key, size=remote.size)
        await in_time(self._store.delete([key]), self._answer_s, f"the delete of {key}")
        return Outcome("gone", answered=True)

    # --- downloads --------------------------------------------------------------------------------

    async def _download(self, transfer: Transfer) -> Outcome:
        key = transfer.key
        if self._artifacts.is_here(key):
            await self._replace_if_wrong(key)
            return Outcome("skipped")
        if self._outdated.now(key):
            return Outcome("gone")
        hydration = Hydration(key, self._store, self._artifacts, self._times, self._outdated)
        result = await hydration.run()
        if result == "stored":
            self._transfers.wrong_objects.mended(key)
            # Before the row of the transfer goes: the two are in different buffers.
            await self._artifacts.settled(key)
            return Outcome("moved", hydration.received, answered=True)
        if result == "absent" or hydration.unwanted:
            return Outcome("gone", answered=result == "absent")
        if isinstance(hydration.error, DigestMismatchError):
            # At once: who misses it may store it again before the last attempt.
            self._transfers.wrong_objects.found(key)
            if transfer.attempts + 1 >= DIGEST_ATTEMPTS:
                log.error("damaged_object", key=key)
                await self._replace_if_wrong(key)
                return Outcome("gone", answered=True)
        await hydration.finished()  # raises what went wrong
        return Outcome("gone")

    async def _replace_if_wrong(self, key: str) -> None:
        """Has the object replaced by the artifact that is here; without one it stays as it is.

        An upload may have skipped it before it was found to be wrong.
        """
        async with self._artifacts.alone(key):
            if key not in self._transfers.wrong_objects or not self._artifacts.is_here(key):
                return
            ticket = await self._transfers.enqueue_upload(key)
        await self._transfers.committed(ticket)

    # --- deletes ----------------------------------------------------------------------------------

    async def _delete(self, key: str) -> Outcome:
        # The row is queued before the artifact goes.
        async with self._artifacts.alone(key):
            # Row and file: after SIGKILL there may be the row of a file that was deleted.
            stored_again = self._artifacts.is_here(key)
        if stored_again:
            # The upload that was queued with it replaces the object.
            return Outcome("skipped")
        await in_time(self._store.delete([key]), self._answer_s, f"the delete of {key}")
        return Outcome("moved", answered=True)


def _is_whole(said: Witnesses, digest: str) -> bool:
    """Whether somebody vouches for these bytes; of an old row without a digest, for their number."""
    if said.can_be_proven:
        return said.by_digest(digest) is not Witness.CONTRADICTED
    return said.label is None and said.fitting_row is not None

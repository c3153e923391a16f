"""Files without rows: taken in if they are surely whole, removed if nobody can say so."""

import asyncio
from typing import NamedTuple

import structlog

from undercroft.artifacts import CacheArtifacts
from undercroft.buffers.cache_artifacts import ArtifactAccess
from undercroft.clock import now_us
from undercroft.database import Database
from undercroft.errors import ObjectStoreError
from undercroft.hydration import Cleaning
from undercroft.s3.object_store import ObjectStore, RemoteObject
from undercroft.storage.disk import Disk
from undercroft.storage.label import Label
from undercroft.storage.layout import artifact_path, digest_in
from undercroft.storage.open_file import CheckedFile
from undercroft.storage.tree import Listing, TreeWalk, remove_if_unused
from undercroft.storage.witnesses import Witnesses
from undercroft.workers.clean_jobs import CleanJobs
from undercroft.workers.pace import Clock, Pace, PacedDigest
from undercroft.workers.reconcile_round import Round

log = structlog.get_logger(__name__)

# The object store has no deadline of its own.
HEAD_S = 10.0

# After a failure it is left in peace for so long, and files wait: not each of them for HEAD_S.
STORE_PAUSE_S = 30.0


class Verdict(NamedTuple):
    """What is to become of a file without a row."""

    content_sha256: str | None
    """Its digest if it is whole; None if nobody can say so."""
    label: Label | None = None
    """What it says of itself, if its own word was taken."""
    upload: bool = True
    """Whether the object store is to get it."""


REMOVE = Verdict(None)


class FileCheck:
    """Looks at every file in the tree of artifacts. Those with a row are `RowCheck`'s.

    A file says what its bytes must be. One that does not, because an earlier version of the node or a file
    system without attributes stored it, is whole unless the machine lost power before the kernel had written
    it: one of this boot is taken in. An older one, or one that is not what it says, must be proven whole by
    its name or by what the object store says of it.
    """

    def __init__(
        self,
        artifacts: CacheArtifacts,
        disk: Disk,
        database: Database,
        object_store: ObjectStore | None,
        *,
        digests: PacedDigest,
        pace: Pace,
        grace_us: int,
        clock: Clock,
        cleaning: Cleaning,
    ) -> None:
        self._artifacts = artifacts
        self._disk = disk
        self._jobs = CleanJobs(database)
        self._store = object_store
        self._digests = digests
        self._pace = pace
        self._grace_us = grace_us
        self._clock = clock
        self._cleaning = cleaning
        self._ask_store_at = clock()
        self._whole_since = 0

    async def run(self, round_: Round, after: str, whole_since: int) -> None:
        """Goes through the tree behind the directory `after`; "" for all of it.

        Files that were published at `whole_since` (microseconds since the epoch) or later are of this
        boot. Raises `ClosedError`.
        """
        self._whole_since = whole_since
        behind = tuple(after.split("/")) if after else None
        walk = TreeWalk(self._disk.artifacts, self._artifacts.threads, behind)
        while (listing := await walk.next()) is not None:
            await self._pace.take(1)
            await self._check_all(round_, listing)
            await round_.come_to("files", "/".join(listing.parts))

    async def _check_all(self, round_: Round, listing: Listing) -> None:
        place = "/".join(listing.parts)
        if listing.error is not None:
            round_.failed(place, listing.error)
        for path in listing.foreign:
            round_.tell_foreign(path)
        for key in listing.keys:
            await self._pace.take(1)
            round_.files += 1
            await round_.attempt(key, self._check(round_, key))
        if listing.empty:
            await round_.attempt(place, self._remove_directory(round_, listing))

    async def _remove_directory(self, round_: Round, listing: Listing) -> None:
        idle_s = max(self._grace_us, 1) / 1_000_000
        remove = self._artifacts.threads.run(remove_if_unused, self._disk.artifacts, listing.parts, idle_s)
        round_.directories_removed += await remove

    async def _check(self, round_: Round, key: str) -> None:
        if self._artifacts.find(key) is not None:
            return
        file = CheckedFile(artifact_path(self._disk.artifacts, key))
        try:
            if await self._artifacts.threads.run(file.open):
                await self._settle(round_, key, file)
        finally:
            file.close()

    async def _settle(self, round_: Round, key: str, file: CheckedFile) -> None:
        if await self._may_get_its_row(file):
            round_.left += 1
            return
        # Before the key is locked: to hash a large file takes minutes, and a writer would wait for them.
        verdict = await self._judge(round_, key, file)
        if verdict is None:
            round_.left += 1
            return
        async with self._artifacts.alone(key):
            same = await self._artifacts.threads.run(file.is_still_there)
            # A request to clean waits for this lock, then for rows to be committed: a row made under the
            # lock is older than the request, one made after it would outlive it.
            if self._cleaning.is_being_cleaned(key):
                round_.left += 1
            elif same and self._artifacts.find(key) is None:
                await self._carry_out(round_, key, file, verdict)

    async def _may_get_its_row(self, file: CheckedFile) -> bool:
        """Whether another process may be about to commit the row. This one has the lock of the key."""
        age_us = now_us() - file.identity.changed_ns // 1_000
        return age_us < self._grace_us and await self._artifacts.threads.run(self._disk.is_shared)

    # --- judging ----------------------------------------------------------------------------------

    async def _judge(self, round_: Round, key: str, file: CheckedFile) -> Verdict | None:
        """What is to become of the file; None if that cannot be said now."""
        label = Witnesses(None, file.label, file.identity.size).fitting_label
        if self._was_cleaned(
            key, label.stored_at if label is not None else file.identity.modified_ns // 1_000
        ):
            return REMOVE
        named = digest_in(key)
        if named is not None:
            digest = await self._digests.of(file)
            return Verdict(digest, label) if digest == named else REMOVE
        if label is not None:
            digest = await self._digests.of(file)
            if digest == label.content_sha256:
                return Verdict(digest, label)
        elif file.label is None and self._is_of_this_boot(file):
            return Verdict(await self._digests.of(file))
        return await self._ask_store(round_, key, file)

    def _was_cleaned(self, key: str, written_at: int) -> bool:
        """Whether its project was cleaned after it was written: with a row of today it would outlive that."""
        account, project, _ = key.split("/", 2)
        return self._jobs.requested_since(account, project, written_at)

    def _is_of_this_boot(self, file: CheckedFile) -> bool:
        """Whether the file was written and got its name since the node first started in this boot.

        Both times count. A name that is taken away moves the later one: so does the sweep at the start
        to what an upload that power cut off had under two names. And a time to come is that of a clock
        that was wrong.
        """
        times = (file.identity.modified_ns // 1_000, file.identity.changed_ns // 1_000)
        return self._whole_since <= min(times) and max(times) <= now_us()

    async def _ask_store(self, round_: Round, key: str, file: CheckedFile) -> Verdict | None:
        if self._store is None:
            return REMOVE
        try:
            remote = await self._head(self._store, key)
        except (ObjectStoreError, TimeoutError) as error:
            round_.failed(f"object store: {key}", error)
            self._ask_store_at = self._clock() + STORE_PAUSE_S
            return None
        if remote is None or remote.size != file.identity.size or remote.content_sha256 is None:
            return REMOVE
        digest = await self._digests.of(file)
        return Verdict(digest, upload=False) if digest == remote.content_sha256 else REMOVE

    async def _head(self, store: ObjectStore, key: str) -> RemoteObject | None:
        """Raises `ObjectStoreError`, TimeoutError."""
        if self._clock() < self._ask_store_at:
            raise ObjectStoreError("it failed a moment ago and was not asked")
        async with asyncio.timeout(HEAD_S):
            return await store.head(key)

    # --- acting -----------------------------------------------------------------------------------

    async def _carry_out(self, round_: Round, key: str, file: CheckedFile, verdict: Verdict) -> None:
        """The caller is `alone` with the key."""
        size, digest = file.identity.size, verdict.content_sha256
        if digest is None:
            await self._artifacts.threads.run(self._disk.delete_file, key, file.identity.inode)
            log.debug("reconcile_removed", key=key, size=size)
            round_.tell("removed")
            return
        # Eviction goes by the last use; nothing is known of one but that it was stored.
        used_at = min(file.identity.modified_ns // 1_000, now_us())
        stored_at = None if verdict.label is None else verdict.label.stored_at
        row = ArtifactAccess(key, size, used_at, digest, stored=True, stored_at=stored_at, instead_of=0)
        await self._artifacts.adopt(row, upload=verdict.upload)
        round_.tell_adopted(key, size)

"""What a request to clean a project removes in the object store.

Which objects are older than the request only the clock of the store can say: a marker is put there,
and what is not younger than the marker goes.
"""

import asyncio
import io
from collections.abc import Callable, Sequence
from contextlib import aclosing

import msgspec

from undercroft.errors import ObjectStoreError
from undercroft.s3.object_store import ObjectStore
from undercroft.s3.pages import pages_of
from undercroft.s3.patience import in_time
from undercroft.s3.transfers import S3Transfers
from undercroft.workers.clean_jobs import CleanJob, CleanJobs
from undercroft.workers.clean_run import CleanRun

# How long one question to the store may take.
ANSWER_S = 60.0

# For each the event loop asks the database whether its artifact is newer: some 10 microseconds.
KEYS_IN_A_TURN = 100

SECOND_US = 1_000_000


def marker_key(job: CleanJob) -> str:
    """The object whose time divides what goes from what stays. No artifact has such a key."""
    return f"{job.account}/{job.project}/.clean-{job.id}"


class ObjectStage:
    """Removes the objects of a project.

    `is_newer(key, cutoff)` says whether an artifact is here that was stored after the request: then its
    object is the new one, or will be. One that was uploaded before the marker and has been evicted here
    since is taken for an old one: a miss, nothing worse.
    """

    def __init__(
        self,
        store: ObjectStore,
        jobs: CleanJobs,
        transfers: S3Transfers,
        is_newer: Callable[[str, int], bool],
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._transfers = transfers
        self._is_newer = is_newer

    async def remove(self, run: CleanRun) -> None:
        """Puts the marker, once however often this is tried; removes what is older, the marker last.

        Raises `ObjectStoreError`, what SQLite raises, errors of the node, and `SupersededError`.
        """
        marker = marker_key(run.job)
        marker_at = run.job.marker_at
        if marker_at is None:
            marker_at = await self._put_marker(marker)
            await self._jobs.mark(run.job, marker_at)
            run.job = msgspec.structs.replace(run.job, marker_at=marker_at)
        async with aclosing(pages_of(self._store, run.prefix, ANSWER_S)) as pages:
            async for page in pages:
                keys = [found.key for found in page if found.modified_at <= marker_at]
                await self._delete_old(run, [key for key in keys if key != marker])
        await in_time(self._store.delete([marker]), ANSWER_S, f"{marker} to be deleted")

    async def _put_marker(self, key: str) -> int:
        content = b"what is older than this is being deleted\n"
        putting = self._store.put(key, io.BytesIO(content), len(content), None)
        await in_time(putting, ANSWER_S, f"{key} to be put")
        found = await in_time(self._store.head(key), ANSWER_S, f"head of {key}")
        if found is None:
            raise ObjectStoreError(f"{key} was put and is not there")
        return end_of_tick(found.modified_at)

    async def _delete_old(self, run: CleanRun, keys: Sequence[str]) -> None:
        old: list[str] = []
        for start in range(0, len(keys), KEYS_IN_A_TURN):
            some = keys[start : start + KEYS_IN_A_TURN]
            old += [key for key in some if not self._is_newer(key, run.cutoff)]
            await asyncio.sleep(0)
        if not old:
            return await run.removed("objects", 0)
        await self._transfers.wait_for_room()
        try:
            await in_time(self._store.delete(old), ANSWER_S, f"{old[0]} and others to be deleted")
        finally:
            self._upload_again(run, old)
        return await run.removed("objects", len(old))

    def _upload_again(self, run: CleanRun, keys: Sequence[str]) -> None:
        """What was stored while its old object was being deleted may have been uploaded before that."""
        for key in keys:
            if self._is_newer(key, run.cutoff):
                self._transfers.enqueue_upload_nowait(key)


def end_of_tick(modified_at: int) -> int:
    """The last microsecond that a clock may have meant.

    HTTP knows whole seconds only, where listings may know more: an object of the same second would look
    younger than the marker. What is new is told by its artifact, not by that second.
    """
    return modified_at if modified_at % SECOND_US else modified_at + SECOND_US - 1

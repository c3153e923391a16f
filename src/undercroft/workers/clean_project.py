"""Cleaning a project: everything of it that was written before a request is removed in the background.

Several processes may share the data directory. Any of them takes requests, one of them carries them out,
and all must know at once that one was taken: nobody may bring back what the object store has. So what is
being cleaned is what the table of jobs says, asked anew each time.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, TypeAlias

import apsw
import msgspec
import structlog

from undercroft.artifacts import CacheArtifacts
from undercroft.clock import not_before, now_us
from undercroft.database import Database
from undercroft.errors import ClosedError, UndercroftError
from undercroft.key_values import KeyValueStore
from undercroft.s3.object_store import ObjectStore
from undercroft.s3.transfers import S3Transfers
from undercroft.storage.disk import Disk
from undercroft.telemetry.events import Events
from undercroft.workers.clean_cutoff import newest_write
from undercroft.workers.clean_jobs import STAGES, CleanJob, CleanJobs
from undercroft.workers.clean_objects import ObjectStage
from undercroft.workers.clean_run import CleanRun, SupersededError, in_words
from undercroft.workers.clean_stages import InWork, NodeStages

log = structlog.get_logger(__name__)

Project: TypeAlias = tuple[str, str]
"""The handles of account and project, checked and in lower case."""

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0

# How soon it is seen that another process on the same data directory took a request, or finished one.
FOLLOW_EVERY_S = 1.0

# What goes by: somebody has a lock, a disk is full or bad, the object store is away.
PASSING = (apsw.Error, OSError, UndercroftError)


class CleanTarget(NamedTuple):
    """What is cleaned. `in_work`: see `InWork`."""

    key_value_database: Database
    node_database: Database
    key_values: KeyValueStore
    artifacts: CacheArtifacts
    disk: Disk
    transfers: S3Transfers
    object_store: ObjectStore | None = None
    in_work: InWork | None = None


class CleanProject:
    """Takes requests to clean a project and carries them out, also after a restart.

    Of the projects that wait the one that is least far gets the next turn, for a stage: key values are
    what a build finds everything else by, and a store that is down holds up nobody's local part.
    """

    def __init__(
        self,
        target: CleanTarget,
        telemetry: Events,
        *,
        first_retry_s: float = FIRST_RETRY_S,
        longest_retry_s: float = LONGEST_RETRY_S,
    ) -> None:
        self._target = target
        self._key_values = target.key_values
        self._artifacts = target.artifacts
        self._telemetry = telemetry
        self._retry_s = first_retry_s, longest_retry_s
        self._jobs = CleanJobs(target.node_database)
        node = NodeStages(
            target.key_value_database,
            target.node_database,
            target.artifacts,
            target.disk,
            target.in_work,
        )
        self._stages: dict[str, Callable[[CleanRun], Awaitable[None]]] = {
            "key_values": node.key_values,
            "artifacts": node.artifacts,
            "transfers": node.transfers,
        }
        if target.object_store is not None:
            objects = ObjectStage(
                target.object_store, self._jobs, target.transfers, target.artifacts.is_newer
            )
            self._stages["objects"] = objects.remove
        self._is_newer = target.artifacts.is_newer
        target.artifacts.is_doomed = self._is_doomed
        target.artifacts.was_cleaned = self._was_cleaned
        self._runs: dict[Project, CleanRun] = {}
        self._arriving: Counter[Project] = Counter()
        self._cleanings: Counter[Project] = Counter()
        self._wake = asyncio.Event()
        self._look_failing: str | None = None

    async def open(self) -> None:
        """Reads which jobs are not done. Raises what SQLite raises."""
        jobs = await self._jobs.unfinished()
        # No await from here on, so whatever was written after that was read is told after this.
        unfinished = {job.id for job in jobs}
        self._runs = {project: run for project, run in self._runs.items() if run.job.id in unfinished}
        for job in jobs:
            self._take(job)
        self._hold_clock()

    # --- asking -----------------------------------------------------------------------------------

    def newest_job(self, account: str, project: str) -> CleanJob | None:
        """The newest job of the project, None if there never was one. One point query."""
        return self._jobs.newest(account, project)

    @property
    def unfinished(self) -> int:
        """Projects that are being cleaned, or wait for it."""
        return len(self._runs)

    def is_being_cleaned(self, key: str) -> bool:
        """Whether what the object store has under this artifact key may be from before a request."""
        project = _project_of(key)
        return project in self._arriving or self._jobs.cutoff(*project) is not None

    def cleanings(self, key: str) -> int:
        """A number that changes with every request for the project of this artifact key, whoever took it.

        Who fetches an object compares it before and after: a whole job may fit in between.
        """
        project = _project_of(key)
        # Those that were announced here may have no job yet.
        return self._cleanings[project] + self._jobs.newest_id(*project)

    def _is_doomed(self, key: str) -> bool:
        """Whether an artifact that is there will go: whoever stores it again must not hear "exists"."""
        cutoff = self._jobs.cutoff(*_project_of(key))
        return cutoff is not None and not self._is_newer(key, cutoff)

    def _was_cleaned(self, key: str, stored_at: int) -> bool:
        """Whether a file that no row knows is older than a request: who carried it out did not find it."""
        return self._jobs.requested_since(*_project_of(key), stored_at)

    # --- requests ---------------------------------------------------------------------------------

    async def request(self, account: str, project: str) -> CleanJob:
        """Takes a request: once this returns, it is carried out whatever happens to the process.

        What is acknowledged before the call goes, what is written after its return stays. Raises
        `CommitTimeoutError`, `DatabaseLockedError`, `DataDirectoryError`, `ClosedError`.
        """
        with self._announced((account, project)):
            # From here on nobody begins to publish what the object store has, and those who had begun
            # before must be over: their rows would look newer than the request.
            await self._artifacts.locks.at_rest(f"{account}/{project}/")
            await self._key_values.flush()
            await self._artifacts.flush()
            # A row gets the time of its commit: all that was there now has an earlier one, unless its
            # clock was ahead of ours.
            newest = await newest_write(
                self._target.key_value_database, self._target.node_database, account, project
            )
            job = await self._jobs.add(account, project, max(now_us(), newest))
            self._take(job)
            self._hold_clock()
        return job

    @contextmanager
    def _announced(self, project: Project) -> Iterator[None]:
        self._cleanings[project] += 1
        self._arriving[project] += 1
        try:
            yield
        finally:
            self._arriving[project] -= 1
            if not self._arriving[project]:
                del self._arriving[project]
            # Also for a request that was cancelled: it may have been too late for that.
            self._wake.set()

    def _take(self, job: CleanJob) -> None:
        project = job.account, job.project
        current = self._runs.get(project)
        if current is not None:
            if current.job.id == job.id and not current.begun:
                # Another process may have come further.
                current.job = job
            if current.job.id >= job.id:
                return
            current.superseded = True
        self._runs[project] = CleanRun(job, self._jobs, self._telemetry, self._retry_s[0])

    def _hold_clock(self) -> None:
        """What is written from now on is newer than what is being removed."""
        not_before(max((run.cutoff + 1 for run in self._runs.values()), default=0))

    # --- in every process -------------------------------------------------------------------------

    async def follow(self) -> None:
        """Takes what other processes were asked for, until it is cancelled or the node closes its parts."""
        while True:
            try:
                if await self._look(self._is_behind):
                    self._wake.set()
            except ClosedError:
                return
            await asyncio.sleep(FOLLOW_EVERY_S)

    def _is_behind(self) -> bool:
        return self._jobs.unfinished_ids() != {run.job.id for run in self._runs.values()}

    async def _look(self, is_behind: Callable[[], bool] = lambda: True) -> bool:
        """Makes the runs those of the table if they are not; answers whether it did."""
        try:
            looked = is_behind()
            if looked:
                await self.open()
        except apsw.Error as error:
            reason = str(error)
            if reason != self._look_failing:
                log.warning("clean_jobs_not_read", error=reason)
            self._look_failing = reason
            return False
        self._look_failing = None
        return looked

    # --- in one of them ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Carries out requests until it is cancelled or the node closes its parts; next to `follow`."""
        while True:
            try:
                await self.work()
            except ClosedError:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rest_s()):
                    await self._wake.wait()

    async def work(self) -> None:
        """Does all that can be done now. Raises `ClosedError`."""
        self._wake.clear()
        # Also for a request that did not live to take its own job.
        await self._look()
        while (run := self._due()) is not None:
            await self._do_stage(run)

    def _due(self) -> CleanRun | None:
        now = time.monotonic()
        due = [run for run in self._runs.values() if run.due_at <= now]
        return min(due, key=lambda run: (STAGES.index(run.job.stage), run.job.id), default=None)

    def _rest_s(self) -> float | None:
        next_due = min((run.due_at for run in self._runs.values()), default=None)
        return None if next_due is None else max(next_due - time.monotonic(), 0)

    async def _do_stage(self, run: CleanRun) -> None:
        run.begin()
        try:
            stage = self._stages.get(run.job.stage)
            if stage is not None:  # without an object store there is none for objects
                await stage(run)
            await self._enter_next(run)
        except SupersededError:
            run.end()
        except ClosedError:
            raise
        except PASSING as error:
            await self._put_off(run, in_words(error))

    async def _enter_next(self, run: CleanRun) -> None:
        stage = STAGES[STAGES.index(run.job.stage) + 1]
        await self._jobs.enter(run.job, stage)
        run.job = msgspec.structs.replace(run.job, stage=stage)
        run.got_on()
        if stage == "done":
            run.end()
            project = run.job.account, run.job.project
            if self._runs.get(project) is run:
                del self._runs[project]
                self._hold_clock()

    async def _put_off(self, run: CleanRun, reason: str) -> None:
        run.put_off(reason, self._retry_s[1])
        # What cannot be written now may be just this.
        with suppress(apsw.Error):
            await self._jobs.failed(run.job, reason)


def _project_of(key: str) -> Project:
    account, project, _ = key.split("/", 2)
    return account, project

"""One request to clean a project while it is worked on."""

import asyncio
import time
from collections.abc import Collection

import structlog

from undercroft.errors import ObjectStoreError, UndercroftError
from undercroft.telemetry import events
from undercroft.telemetry.events import Events
from undercroft.workers.clean_jobs import NOTHING, CleanJob, CleanJobs, What

log = structlog.get_logger(__name__)

PROGRESS_SECONDS = 5.0


def in_words(error: Exception) -> str:
    """Why a job does not get on, for who asked for it: they know the node's parts, not its classes."""
    if isinstance(error, ObjectStoreError):
        return f"the object store failed: {error}"
    if isinstance(error, UndercroftError):
        return str(error)
    if isinstance(error, OSError):
        return f"the disk failed: {error.strerror or error}"
    return f"the database failed: {error}"


class SupersededError(Exception):
    """A newer request for the same project has taken over."""


class CleanRun:
    """A job at work: what it removed in this process, why it failed, and when it is tried again."""

    def __init__(self, job: CleanJob, jobs: CleanJobs, telemetry: Events, first_retry_s: float) -> None:
        self.job = job
        self.superseded = False
        self.failing: str | None = None
        """Why the last attempt failed."""
        self.due_at = 0.0
        """Monotonic time, seconds."""
        self.in_work: Collection[asyncio.Future[None]] | None = None
        """The transfers that must be over before those of the project go; None until that is asked."""
        self._jobs = jobs
        self._telemetry = telemetry
        self._first_retry_s = self._retry_s = first_retry_s
        self._removed: dict[str, int] = dict(NOTHING)
        self._began = False
        self._started = self._reported = time.monotonic()

    @property
    def cutoff(self) -> int:
        """What was written until then goes; microseconds since the epoch."""
        return self.job.requested_at

    @property
    def prefix(self) -> str:
        """How keys of the project's artifacts begin."""
        return f"{self.job.account}/{self.job.project}/"

    @property
    def begun(self) -> bool:
        """Whether this process has worked on it: then it knows best how far that is."""
        return self._began

    def begin(self) -> None:
        """Logs the beginning, once."""
        if not self._began:
            self._began = True
            self._log("clean_project_begins", stage=self.job.stage)

    async def removed(self, what: What, count: int) -> None:
        """Tells that a slice was worked on. Raises `SupersededError` if there is no need to go on."""
        if count:
            await self._jobs.count(self.job, what, count)
            self._telemetry.emit(events.CLEANED, {"count": count}, {"what": what})
            self._removed[what] += count
        if time.monotonic() - self._reported >= PROGRESS_SECONDS:
            self._reported = time.monotonic()
            self._log("clean_project_goes_on", stage=self.job.stage, **self._removed)
        if self.superseded:
            raise SupersededError

    def put_off(self, reason: str, longest_retry_s: float) -> None:
        """Lets the job wait after a failure, longer after each; logs a reason that is a new one."""
        if reason != self.failing:
            log.warning(
                "clean_project_failed", account=self.job.account, project=self.job.project, error=reason
            )
        self.failing = reason
        self.due_at = time.monotonic() + self._retry_s
        self._retry_s = min(self._retry_s * 2, longest_retry_s)

    def got_on(self) -> None:
        """A stage is complete."""
        if self.failing is not None:
            self._log("clean_project_recovered")
        self.failing = None
        self._retry_s = self._first_retry_s

    def end(self) -> None:
        """Logs the end."""
        seconds = round(time.monotonic() - self._started, 1)
        self._log("clean_project_superseded" if self.superseded else "project_cleaned", seconds=seconds)

    def _log(self, event: str, **values: object) -> None:
        log.info(event, account=self.job.account, project=self.job.project, **values)

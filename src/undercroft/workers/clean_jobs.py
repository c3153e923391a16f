"""The table of requests to clean a project: what was asked for, and how far it has come."""

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import apsw
import msgspec

from undercroft.clock import now_us
from undercroft.database import Database, transaction
from undercroft.database.insisting import insisting

What: TypeAlias = Literal["key_values", "artifacts", "transfers", "objects"]
Stage: TypeAlias = Literal["key_values", "artifacts", "transfers", "objects", "done"]

STAGES: tuple[Stage, ...] = ("key_values", "artifacts", "transfers", "objects", "done")
"""In their order. Artifacts before transfers: what is uploaded after a file has gone is a newer one."""

NOTHING: Mapping[str, int] = {"key_values": 0, "artifacts": 0, "transfers": 0, "objects": 0}

FINISHED_KEPT = 100


class CleanJob(msgspec.Struct, frozen=True):
    """A request to remove all of a project that was written until `requested_at`.

    Times are in microseconds since the epoch, `marker_at` by the clock of the object store. The counts
    say what was removed; a SIGKILL may cost them the slice that was in work.
    """

    id: int
    account: str
    project: str
    requested_at: int
    stage: Stage
    marker_at: int | None
    key_values: int
    artifacts: int
    transfers: int
    objects: int
    finished_at: int | None
    last_error: str | None


class CleanJobs:
    """Reads and writes the table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, account: str, project: str, requested_at: int) -> CleanJob:
        """A new job, committed on return. What an unfinished one of the project was to do is part of it.

        Raises `DatabaseLockedError` when another process does not let go of the database,
        `DataDirectoryError` when it cannot be written.
        """
        return await insisting(
            self._database, lambda: self._database.write(lambda c: _add(c, account, project, requested_at))
        )

    def newest(self, account: str, project: str) -> CleanJob | None:
        """The newest job of the project. One point query."""
        row = self._database.find(NEWEST, account, project)
        return None if row is None else CleanJob(*row)

    def newest_id(self, account: str, project: str) -> int:
        """The id of the newest job of the project, 0 if none is known. One point query."""
        row = self._database.find(NEWEST_ID, account, project)
        return 0 if row is None else int(row[0])

    def cutoff(self, account: str, project: str) -> int | None:
        """Until when what was written is being removed now; None if the project is not being cleaned."""
        row = self._database.find(CUTOFF, account, project)
        return None if row is None else int(row[0])

    def requested_since(self, account: str, project: str, at: int) -> bool:
        """Whether what was written at that time was to go by a request, done or not. One point query."""
        return self._database.find(REQUESTED_SINCE, account, project, at) is not None

    def unfinished_ids(self) -> set[int]:
        """The jobs that are not done. The table is short: few jobs wait, and few finished ones are kept."""
        row = self._database.find(UNFINISHED_IDS)
        return set() if row is None else set(json.loads(row[0]))

    async def unfinished(self) -> list[CleanJob]:
        """All jobs that are not done. Raises what SQLite raises, like all that follow."""
        # By the writer, whose work is done in order: a job is in the answer even if the request that was
        # adding it has been cancelled meanwhile.
        return await self._database.write(
            lambda connection: [CleanJob(*row) for row in connection.execute(UNFINISHED)]
        )

    async def count(self, job: CleanJob, what: What, count: int) -> None:
        """Adds to what the job has removed."""
        await self._update(COUNT, {**NOTHING, what: count, "id": job.id})

    async def mark(self, job: CleanJob, marker_at: int) -> None:
        """Keeps when the part of the object store began."""
        await self._update(MARK, {"marker_at": marker_at, "id": job.id})

    async def enter(self, job: CleanJob, stage: Stage) -> None:
        """Takes the job to its next stage; the last one finishes it."""
        done_at = now_us() if stage == "done" else None
        await self._update(ENTER, {"stage": stage, "finished_at": done_at, "id": job.id})

    async def failed(self, job: CleanJob, error: str) -> None:
        """Keeps why the job does not get on; `enter` forgets it."""
        await self._update(FAILED, {"error": error, "id": job.id})

    async def _update(self, sql: str, values: dict[str, Any]) -> None:
        def update(connection: apsw.Connection) -> None:
            with transaction(connection):
                connection.execute(sql, values)

        await self._database.write(update)


def _add(connection: apsw.Connection, account: str, project: str, requested_at: int) -> CleanJob:
    with transaction(connection):
        connection.execute(ADD, (account, project, requested_at))
        added = CleanJob(*connection.execute(ADDED).get)
        # After the new one has its id: ids must grow, and SQLite gives the highest again if it is free.
        connection.execute(DROP_OLDER, (account, project, added.id))
        connection.execute(PRUNE, (FINISHED_KEPT,))
    return added


SELECT = """
SELECT id, account_handle, project_handle, requested_at, stage, marker_at, key_values, artifacts, transfers,
    objects, finished_at, last_error
FROM clean_jobs
"""

ADD = """
INSERT INTO clean_jobs (account_handle, project_handle, requested_at, stage) VALUES (?, ?, ?, 'key_values')
"""

ADDED = f"{SELECT} WHERE id = last_insert_rowid()"

DROP_OLDER = """
DELETE FROM clean_jobs WHERE account_handle = ? AND project_handle = ? AND stage <> 'done' AND id < ?
"""

PRUNE = """
DELETE FROM clean_jobs WHERE stage = 'done' AND id NOT IN (
    SELECT id FROM clean_jobs WHERE stage = 'done' ORDER BY id DESC LIMIT ?
)
"""

# By id: a clock that was set back must not make an older request the newest.
NEWEST = f"{SELECT} WHERE account_handle = ? AND project_handle = ? ORDER BY id DESC LIMIT 1"

NEWEST_ID = """
SELECT id FROM clean_jobs WHERE account_handle = ? AND project_handle = ? ORDER BY id DESC LIMIT 1
"""

CUTOFF = """
SELECT requested_at FROM clean_jobs
WHERE account_handle = ? AND project_handle = ? AND stage <> 'done' ORDER BY id DESC LIMIT 1
"""

REQUESTED_SINCE = """
SELECT 1 FROM clean_jobs
WHERE account_handle = ? AND project_handle = ? AND requested_at >= ? LIMIT 1
"""

UNFINISHED_IDS = "SELECT json_group_array(id) FROM clean_jobs WHERE stage <> 'done'"

UNFINISHED = f"{SELECT} WHERE stage <> 'done' ORDER BY id"

COUNT = """
UPDATE clean_jobs SET
    key_values = key_values + :key_values,
    artifacts = artifacts + :artifacts,
    transfers = transfers + :transfers,
    objects = objects + :objects
WHERE id = :id
"""

MARK = "UPDATE clean_jobs SET marker_at = :marker_at WHERE id = :id"

ENTER = "UPDATE clean_jobs SET stage = :stage, finished_at = :finished_at, last_error = NULL WHERE id = :id"

FAILED = "UPDATE clean_jobs SET last_error = :error WHERE id = :id"

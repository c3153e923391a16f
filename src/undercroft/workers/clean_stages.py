"""What a request to clean a project removes on this node, stage by stage, each in small slices.

A stage that is broken off begins again: what it removed is gone, and what it passes over again is newer
than the request.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Collection, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import apsw

from undercroft.artifacts import CacheArtifacts
from undercroft.database import Database, transaction
from undercroft.s3.patience import in_time
from undercroft.storage.disk import Disk
from undercroft.storage.layout import artifact_path, key_value_key
from undercroft.storage.tree import Parts, list_directory
from undercroft.workers.clean_run import CleanRun
from undercroft.workers.maintenance import WriterShare

# Rows in one transaction.
SLICE_ROWS = 250
MOST_SLICE_ROWS = 4_000

# Artifacts whose rows are deleted in one flush.
SLICE_ARTIFACTS = 500

# Directories that one thread looks through before others get their turn.
SLICE_DIRECTORIES = 64

# For each the event loop asks the database whether its artifact is newer: some 10 microseconds.
SLICE_TRANSFERS = 200

# How long to wait for what is in work, while other projects wait, too.
IN_WORK_S = 10.0


InWork: TypeAlias = Callable[[str], Awaitable[Collection[asyncio.Future[None]]]]
"""Answers the transfers in work of keys with this prefix, to be waited for."""


class Piece(NamedTuple):
    """What one transaction looked at: how many rows it deleted, and the last of them; None at the end."""

    removed: int
    last: str | None


class NodeStages:
    """Removes key values, artifacts and transfers of a project.

    Each stage raises what SQLite and the disk raise, errors of the node, and `SupersededError`.
    """

    def __init__(
        self,
        key_values: Database,
        node: Database,
        artifacts: CacheArtifacts,
        disk: Disk,
        in_work: InWork | None,
    ) -> None:
        self._key_values = key_values
        self._node = node
        self._artifacts = artifacts
        self._disk = disk
        self._in_work = in_work

    # --- key values -------------------------------------------------------------------------------

    async def key_values(self, run: CleanRun) -> None:
        """A write gives its row the time of its commit, a read does not touch that, nor makes a row."""
        prefix = key_value_key(run.job.account, run.job.project, "")
        share = WriterShare(SLICE_ROWS, MOST_SLICE_ROWS)
        after: str | None = prefix
        while after is not None:
            values = {"after": after, "end": end_of(prefix), "cutoff": run.cutoff}
            piece = await share.do(self._key_values, partial(_delete_key_values, values=values))
            await run.removed("key_values", piece.removed)
            after = piece.last

    # --- artifacts --------------------------------------------------------------------------------

    async def artifacts(self, run: CleanRun) -> None:
        """Rows with their files, then files without a row: the next reconcile would take them in."""
        undone: list[OSError] = []
        await self._rows_with_files(run, undone)
        await self._files_without_row(run, undone)
        if undone:
            # One file that cannot be deleted keeps none of the others.
            raise undone[0]

    async def _rows_with_files(self, run: CleanRun, undone: list[OSError]) -> None:
        after, end = run.prefix, end_of(run.prefix)
        while page := await self._node.read(partial(_stored_artifacts, after=after, end=end)):
            await self._evict(run, [key for key, stored_at in page if stored_at <= run.cutoff], undone)
            after = page[-1][0]

    async def _files_without_row(self, run: CleanRun, undone: list[OSError]) -> None:
        project = run.job.account, run.job.project
        directories = old_files(self._disk.artifacts, project, run.cutoff)
        while some := await self._artifacts.threads.run(_take, directories):
            undone += [strays.error for strays in some if strays.error is not None]
            await self._evict(run, [key for strays in some for key in strays.keys], undone)

    async def _evict(self, run: CleanRun, keys: list[str], undone: list[OSError]) -> None:
        evicted = 0
        for key in keys:
            try:
                evicted += await self._evict_if_old(key, run.cutoff)
            except OSError as error:
                undone.append(error)
        if evicted:
            await self._artifacts.flush()
        await run.removed("artifacts", evicted)

    async def _evict_if_old(self, key: str, cutoff: int) -> bool:
        async with self._artifacts.alone(key):
            # Asked again: it may have been stored anew since it was found.
            if self._artifacts.is_newer(key, cutoff):
                return False
            row = self._artifacts.find(key)
            file = await self._artifacts.threads.run(self._disk.look, key)
            label = None if file is None else file.fitting_label
            if label is not None and label.stored_at > cutoff:
                return False  # another process has just given it the name
            freed: int | None = None
            if file is not None:
                # Only that: another process may be giving the name to a new one.
                freed = await self._artifacts.threads.run(self._disk.delete_file, key, file.inode)
            if row is not None:
                await self._artifacts.forget(row, removed=freed is not None)
        return row is not None or file is not None

    # --- transfers --------------------------------------------------------------------------------

    async def transfers(self, run: CleanRun) -> None:
        """Uploads and downloads, once those that began with a file that has gone by now are over.

        A row of the queue also stands for what was queued again while it waited. So an upload stays if its
        artifact is a newer one, and every delete stays: it asks for no more than this job does.
        """
        await in_time(self._old_ones_over(run), IN_WORK_S, "transfers in work to end")
        after: tuple[str, str] | None = (run.prefix, "")
        while after is not None:
            values = {"key": after[0], "id": after[1], "end": end_of(run.prefix), "cutoff": run.cutoff}
            page = await self._node.read(partial(_queued_transfers, values=values))
            old = [
                id_
                for id_, kind, key in page
                if kind != "upload" or not self._artifacts.is_newer(key, run.cutoff)
            ]
            # In the same turn of the event loop: an upload that is queued again from here on is inserted
            # by the writer after this, and cannot vanish into a row that is about to go.
            await self._node.write(partial(_delete_transfers, ids=old))
            await run.removed("transfers", len(old))
            after = (page[-1][2], page[-1][0]) if page else None

    async def _old_ones_over(self, run: CleanRun) -> None:
        """Waits for what was in work when this stage was first tried, however often it is tried again.

        What began since has a newer file. To wait for that as well would never end where some upload of
        the project always is in work.
        """
        if run.in_work is None:
            run.in_work = () if self._in_work is None else await self._in_work(run.prefix)
        if run.in_work:
            await asyncio.wait(run.in_work)


def end_of(prefix: str) -> str:
    """The first text after all that begin with `prefix`, in the order of SQLite."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


class Strays(NamedTuple):
    """Of one directory the keys of its old files, or why it cannot be read."""

    keys: list[str]
    error: OSError | None


def old_files(artifacts: Path, project: Parts, cutoff: int) -> Iterator[Strays]:
    """The files of a project that have had their name since before then. Blocks; raises OSError."""
    ahead = [project]
    while ahead:
        listing = list_directory(artifacts, ahead.pop())
        ahead += listing.directories
        keys = [key for key in listing.keys if _named_at(artifact_path(artifacts, key)) <= cutoff]
        yield Strays(keys, listing.error)


def _named_at(path: str) -> int:
    """When the file got its name (its ctime, microseconds); 0 when it is gone, as others will find."""
    try:
        return os.lstat(path).st_ctime_ns // 1_000
    except FileNotFoundError:
        return 0


def _take(directories: Iterator[Strays]) -> list[Strays]:
    return list(islice(directories, SLICE_DIRECTORIES))


# --- in the threads of the databases ----------------------------------------------------------------


def _delete_key_values(connection: apsw.Connection, rows: int, values: dict[str, Any]) -> Piece:
    """Looks at the next `rows` of the project and deletes the old ones."""
    with transaction(connection):
        ids, count, last = connection.execute(OLD_KEY_VALUES, values | {"rows": rows}).get
        if count:
            connection.execute(DELETE_KEY_VALUES, (ids,))
    return Piece(count, last)


def _stored_artifacts(connection: apsw.Connection, after: str, end: str) -> list[tuple[str, int]]:
    """The next artifacts of the project, each with the time of its store."""
    return list(connection.execute(STORED_ARTIFACTS, (after, end, SLICE_ARTIFACTS)))


def _queued_transfers(connection: apsw.Connection, values: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Id, type and key of the next transfers that were queued until the request."""
    return list(connection.execute(QUEUED_TRANSFERS, values | {"rows": SLICE_TRANSFERS}))


def _delete_transfers(connection: apsw.Connection, ids: list[str]) -> None:
    with transaction(connection):
        connection.execute(DELETE_TRANSFERS, (json.dumps(ids),))


# As in eviction: a list in one row, because for every row SQLite would come back to Python.
OLD_KEY_VALUES = """
SELECT json_group_array(id) FILTER (WHERE old), coalesce(sum(old), 0), max(key) FROM (
    SELECT id, key, updated_at <= :cutoff AS old FROM key_value_entries
    WHERE key > :after AND key < :end ORDER BY key LIMIT :rows
)
"""

DELETE_KEY_VALUES = "DELETE FROM key_value_entries WHERE id IN (SELECT value FROM json_each(?))"

STORED_ARTIFACTS = """
SELECT key, coalesce(stored_at, inserted_at) FROM cache_artifacts
WHERE key > ? AND key < ? ORDER BY key LIMIT ?
"""

QUEUED_TRANSFERS = """
SELECT id, type, key FROM s3_transfers
WHERE (key, id) > (:key, :id) AND key < :end AND type <> 'delete' AND inserted_at <= :cutoff
ORDER BY key, id LIMIT :rows
"""

DELETE_TRANSFERS = "DELETE FROM s3_transfers WHERE id IN (SELECT value FROM json_each(?))"

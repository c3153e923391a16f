"""Eviction of key values: those not asked for in a long time, and the oldest when there are too many."""

import asyncio
import time
from functools import partial
from typing import Any, NamedTuple

import apsw
import structlog

from undercroft.buffers import SQLiteBuffer
from undercroft.buffers.key_values import KeyValueEvent, KeyValueState
from undercroft.clock import now_us
from undercroft.database import Database, transaction
from undercroft.database.connection import CHECKPOINT_PAGES
from undercroft.database.upkeep import Pages, pages
from undercroft.errors import ClosedError, CommitTimeoutError
from undercroft.telemetry import events
from undercroft.telemetry.events import Events
from undercroft.workers.maintenance import WriterShare, truncate, vacuum

log = structlog.get_logger(__name__)

DAY_US = 86_400_000_000

# Rows in one transaction.
SLICE_ROWS = 100
MOST_SLICE_ROWS = 4_000

# Bytes in one transaction, or nearly: SQLite walks through all pages of a row that it deletes, while the
# flushes wait. Four of the largest rows there can be.
MOST_SLICE_BYTES = 32 << 20

# By size a slice ends where enough has gone. Towards the end that would be a row at a time, since a page
# is only free when all of its rows have gone, so it is at least as much as this.
LEAST_SLICE_BYTES = 32 << 10

# What a row takes besides its payload: its key in the table and in an index, times, and what pages leave
# empty. Rather more than it is: what is still over after a slice goes with the next one, and what has
# gone does not come back.
ROW_BYTES = 400

# Eviction by size goes on until this share of the bound, so that it does not begin again at once.
LOW_MARK = 0.85

# From so many free pages on they are given back between two slices. A page of SQLite's list of free
# pages names 1,022 of them, and vacuum searches the whole list for each page it cuts.
VACUUM_FROM_PAGES = 1_000

PROGRESS_SECONDS = 5.0

# So often it is looked whether eviction gets ahead: so many times as many rows must go as come.
PACE_SECONDS = 1.0
AHEAD = 2


class Slice(NamedTuple):
    """What one transaction evicted."""

    rows: int
    youngest: int
    """Last access of the one that was used last, in microseconds since the epoch; 0 without any."""
    newest_id: int
    """Of the row that came last, before the eviction; 0 without any. Ids count what comes."""
    left: Pages


class Pace:
    """Whether eviction gets ahead of what is inserted meanwhile."""

    def __init__(self) -> None:
        self._evicted = 0
        self._newest_id = 0
        self._looked = time.monotonic()

    def is_behind(self, evicted: Slice) -> bool | None:
        """To be told of each slice; answers now and then."""
        self._evicted += evicted.rows
        if self._newest_id and time.monotonic() - self._looked < PACE_SECONDS:
            return None
        inserted = evicted.newest_id - self._newest_id if self._newest_id else 0
        behind = self._evicted < AHEAD * inserted
        self._evicted, self._newest_id, self._looked = 0, evicted.newest_id, time.monotonic()
        return behind


class Run:
    """What one run has done so far."""

    def __init__(self) -> None:
        self.bytes_before = 0
        self.rows = 0
        self._started = self._reported = time.monotonic()

    def add(self, rows: int) -> None:
        """Counts evicted rows; logs now and then, for whoever watches a long run."""
        self.rows += rows
        if time.monotonic() - self._reported >= PROGRESS_SECONDS:
            self._reported = time.monotonic()
            log.info("key_values_eviction_goes_on", rows=self.rows, seconds=self.seconds)

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return round(time.monotonic() - self._started, 1)


class KeyValueEviction:
    """Deletes key values in small transactions between the flushes of their buffer.

    By age: those whose last access, or without one whose last write, is more than `max_age_days` ago.
    By size: when the file with its WAL exceeds `max_database_bytes`, those without an access and then
    the longest unused, until both are well below. None switches a rule off. Looked at every
    `interval_ms`.

    What SQLite or the disk refuses is logged once and tried again at the next tick.
    """

    def __init__(
        self,
        database: Database,
        buffer: SQLiteBuffer[KeyValueState, KeyValueEvent],
        telemetry: Events,
        *,
        max_age_days: float | None,
        max_database_bytes: int | None,
        interval_ms: int,
    ) -> None:
        self._database = database
        self._buffer = buffer
        self._telemetry = telemetry
        self._max_age_us = None if max_age_days is None else int(max_age_days * DAY_US)
        self._max_bytes = max_database_bytes
        self._interval_ms = interval_ms
        self._failing: str | None = None
        self._over_bound = False

    async def run(self) -> None:
        """Evicts whenever there is a reason to, until it is cancelled or the node closes its parts."""
        while True:
            try:
                await self.run_once()
            except ClosedError:
                return
            await asyncio.sleep(self._interval_ms / 1_000)

    async def run_once(self) -> None:
        """Evicts all that must go now. Raises `ClosedError`."""
        run = Run()
        try:
            await self._evict(run)
        except (apsw.Error, OSError, CommitTimeoutError) as error:
            self._failed(f"{type(error).__name__}: {error}")
        else:
            self._recovered()
        if run.rows:
            log.info(
                "key_values_evicted",
                rows=run.rows,
                bytes_given_back=self._given_back(run),
                seconds=run.seconds,
            )

    def _given_back(self, run: Run) -> int | None:
        """What went for its age is given back by maintenance. None if the disk does not say."""
        try:
            return max(run.bytes_before - self._database.size_on_disk().total, 0)
        except OSError:
            return None

    async def _evict(self, run: Run) -> None:
        run.bytes_before = self._database.size_on_disk().total
        # What was used a moment ago is the last to go, and the buffer may still have that to itself.
        await self._buffer.flush()
        if self._max_age_us is not None:
            await self._evict_old(run, now_us() - self._max_age_us)
        if self._max_bytes is not None:
            await self._keep_bound(run, self._max_bytes)

    def _failed(self, reason: str) -> None:
        if self._failing != reason:
            log.warning("key_value_eviction_failed", error=reason)
        self._failing = reason

    def _recovered(self) -> None:
        if self._failing is not None:
            log.info("key_value_eviction_recovered")
        self._failing = None

    # --- by age -----------------------------------------------------------------------------------

    async def _evict_old(self, run: Run, before: int) -> None:
        await self._evict_old_without_access(run, before)
        share = WriterShare(SLICE_ROWS, MOST_SLICE_ROWS)
        values = {"before": before, "bytes": MOST_SLICE_BYTES}
        while await self._evict_slice(run, share, "age", OLD, values):
            pass

    async def _evict_old_without_access(self, run: Run, before: int) -> None:
        """No index tells old from new here, so they are looked for where nobody waits: by the reader."""
        share = WriterShare(SLICE_ROWS, MOST_SLICE_ROWS)
        after = 0
        while True:
            values = {"before": before, "after": after, "rows": share.amount}
            ids, last = await self._database.read(partial(find_unused, values=values))
            if last is None:
                return
            chosen = {"before": before, "ids": ids, "bytes": MOST_SLICE_BYTES}
            while await self._evict_slice(run, share, "age", OLD_UNUSED, chosen):
                pass
            after = last

    # --- by size ----------------------------------------------------------------------------------

    async def _keep_bound(self, run: Run, max_bytes: int) -> None:
        if self._database.size_on_disk().total > max_bytes:
            # All of the surplus may be free pages and WAL, for which no key value need go.
            await self._give_back()
        over = self._database.size_on_disk().total > max_bytes
        if over:
            await self._shrink(run, self._goal(max_bytes))
            await self._give_back()
            over = self._database.size_on_disk().total > max_bytes
        if over and not self._over_bound:
            log.warning("key_values_over_bound", bytes=self._database.size_on_disk().total, bound=max_bytes)
        self._over_bound = over

    def _goal(self, max_bytes: int) -> int:
        """How many bytes of pages may be left: room is kept for the WAL between two checkpoints."""
        low = int(max_bytes * LOW_MARK)
        return low - min(CHECKPOINT_PAGES * 4_096, low // 2)

    async def _shrink(self, run: Run, goal: int) -> None:
        """Evicts until the pages in use take no more than `goal` bytes, or nothing is left.

        Pages, not the size of the file: that only follows with the checkpoints, and not at all while
        some reader stays, which must not cost a key value.
        """
        share = WriterShare(SLICE_ROWS, MOST_SLICE_ROWS)
        pace = Pace()
        left = await self._database.read(pages)
        while left.used_bytes > goal:
            enough = min(max(left.used_bytes - goal, LEAST_SLICE_BYTES), MOST_SLICE_BYTES)
            evicted = await self._evict_slice(run, share, "size", LONGEST_UNUSED, {"bytes": enough})
            if evicted is None:
                return
            left = evicted.left
            behind = pace.is_behind(evicted)
            if behind is not None:
                share.press(behind)
            if left.free >= VACUUM_FROM_PAGES:
                await vacuum(self._database, self._telemetry, keep=0, hurry=share.hurries)

    async def _give_back(self) -> None:
        await vacuum(self._database, self._telemetry, keep=0)
        # The file shrinks with it: a page is only cut off once the WAL is copied whole.
        await truncate(self._database, self._telemetry)

    # --- both -------------------------------------------------------------------------------------

    async def _evict_slice(
        self, run: Run, share: WriterShare, reason: str, choice: str, values: dict[str, Any]
    ) -> Slice | None:
        """Evicts some of what `choice` selects, about `bytes` of it at most; None when that is nothing."""
        evicted = await share.do(
            self._database, lambda connection, rows: evict_slice(connection, choice, values | {"rows": rows})
        )
        if not evicted.rows:
            return None
        age = max(now_us() - evicted.youngest, 0) / 1_000_000
        measurements = {"count": evicted.rows, "age_seconds": age}
        self._telemetry.emit(events.KEY_VALUES_EVICTED, measurements, {"reason": reason})
        run.add(evicted.rows)
        return evicted


def evict_slice(connection: apsw.Connection, choice: str, values: dict[str, Any]) -> Slice:
    """Deletes the rows of a choice, made in the same transaction: nobody uses one in between.

    The choice is one row with a list in it. RETURNING would come back to Python for each row, which
    then waits for its global lock.
    """
    with transaction(connection):
        chosen = connection.execute(choice, values | {"row_bytes": ROW_BYTES})
        ids, count, youngest, newest_id = chosen.get
        if count:
            connection.execute(DELETE, (ids,))
    return Slice(count, youngest or 0, newest_id or 0, pages(connection))


def find_unused(connection: apsw.Connection, values: dict[str, int]) -> tuple[str, int | None]:
    """The next rows without an access as a list of ids, and the last of them; None if there is none."""
    found: tuple[str, int | None] = connection.execute(FIND_UNUSED, values).get
    return found


# The first rows that have so many bytes together, one at least. The length of a payload is known without
# reading it.
CHOICE = """
SELECT json_group_array(id), count(*), max(coalesce(last_accessed_at, updated_at)),
    (SELECT max(id) FROM key_value_entries)
FROM (
    SELECT id, last_accessed_at, updated_at, sum(bytes) OVER (
        ORDER BY last_accessed_at, id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS bytes_before
    FROM (
        SELECT id, last_accessed_at, updated_at, octet_length(json_payload) + :row_bytes AS bytes
        FROM key_value_entries {which} LIMIT :rows
    )
)
WHERE coalesce(bytes_before, 0) < :bytes
"""

OLD = CHOICE.format(which="WHERE last_accessed_at < :before ORDER BY last_accessed_at")

# Asked for or written anew since they were found, they stay.
OLD_UNUSED = CHOICE.format(
    which="WHERE id IN (SELECT value FROM json_each(:ids)) "
    "AND last_accessed_at IS NULL AND updated_at < :before"
)

# SQLite sorts NULL first.
LONGEST_UNUSED = CHOICE.format(which="ORDER BY last_accessed_at")

FIND_UNUSED = """
SELECT json_group_array(id), max(id) FROM (
    SELECT id FROM key_value_entries
    WHERE last_accessed_at IS NULL AND id > :after AND updated_at < :before ORDER BY id LIMIT :rows
)
"""

DELETE = "DELETE FROM key_value_entries WHERE id IN (SELECT value FROM json_each(?))"

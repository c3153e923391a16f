"""Eviction of artifacts: the longest unused go, so that the disk stays below its watermarks."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import apsw
import structlog

from undercroft.artifacts import CacheArtifacts
from undercroft.clock import MOST_AHEAD_US, now_us
from undercroft.database import Database
from undercroft.errors import ClosedError, CommitTimeoutError, UndercroftError
from undercroft.storage.capacity import Capacity
from undercroft.storage.waiting_line import WaitingLine
from undercroft.supervisor import to_its_end
from undercroft.telemetry import events
from undercroft.telemetry.events import Events
from undercroft.workers.eviction_candidates import (
    ALL,
    EVER,
    FIRST,
    LOOK_ROWS,
    SLICE_ROWS,
    SPARING_UPLOADS,
    Candidate,
    last_until,
)

log = structlog.get_logger(__name__)

# All rows looked at in vain: that is not done again within a pass until so many times as long is over.
SELDOM = 10

# Artifacts deleted at once: enough to keep the disk's threads busy between two turns of the event loop.
CHUNK = 8

# So many slices in a row of which nothing could go, because all was used again since: then it goes.
MOST_SPARED_SLICES = 3

# So many artifacts in a row that cannot be deleted: it is not the artifacts that are at fault.
MOST_FAILURES = 16

# How long a pass waits for the commit of what was used lately. A full disk may take no commit before
# something went.
FLUSH_S = 1.0

# How often a pass looks again while uploads wait for what others will release.
POLL_S = 0.02

# More bytes than any disk has.
UNTIL_FEWER_FILES = 1 << 62

# What SQLite is to find when it found the disk full: a WAL of the size at which it is copied, and begins
# again (`CHECKPOINT_PAGES`).
ROOM_FOR_ROWS = 4 << 20

# A pass that failed is followed by the next one no sooner.
RETRY_S = 1.0

PROGRESS_S = 5.0


class Pass:
    """What one pass has done so far."""

    def __init__(self, capacity: Capacity, reason: str) -> None:
        self._capacity = capacity
        self._reason = reason
        self.artifacts = 0
        self.rows_gone = 0
        """Those of `artifacts`, and whose file went before: another process counts it, or this pass has."""
        self.failures_in_a_row = 0
        self.may_flush = True
        self._bytes = 0
        self._uploads_pending = 0
        self._all_uploading_until = 0.0
        self._started = self._reported = time.monotonic()
        self.see_the_truth()

    def see_the_truth(self) -> None:
        """From here on the file system is taken at its word again."""
        self._unlinked = 0
        self._unexplained = self._capacity.unexplained()

    @property
    def may_spare(self) -> bool:
        """Whether there may be artifacts without a pending upload."""
        return time.monotonic() >= self._all_uploading_until

    def nothing_to_spare(self, since: float) -> None:
        """Every artifact has a pending upload, as was found out since that time (monotonic)."""
        now = time.monotonic()
        self._all_uploading_until = now + SELDOM * (now - since)

    @property
    def to_come(self) -> int:
        """Bytes of deleted files that the file system has not given back: somebody reads them still.

        To delete more for their sake would let a few slow readers cost the whole cache.
        """
        return min(max(self._capacity.unexplained() - self._unexplained, 0), self._unlinked)

    def add(self, candidate: Candidate, freed: int) -> None:
        """Counts an artifact that went."""
        self.artifacts += 1
        self._bytes += freed
        self._unlinked += freed
        self._uploads_pending += candidate.uploading
        if time.monotonic() - self._reported >= PROGRESS_S:
            self._reported = time.monotonic()
            self._log("disk_eviction_goes_on")

    def close(self) -> None:
        """Says what was done, if anything was."""
        if self.artifacts:
            self._log("disk_evicted")

    def _log(self, event: str) -> None:
        log.info(
            event,
            reason=self._reason,
            artifacts=self.artifacts,
            uploads_pending=self._uploads_pending,
            bytes_freed=self._bytes,
            used=self._capacity.used,
            limit=self._capacity.limit(),
            duration_ms=round((time.monotonic() - self._started) * 1_000),
        )


class DiskEviction:
    """Deletes the artifacts that were not used for longest, whenever there are too many bytes of them.

    Above `high_percent` of the bound on artifacts, or of the volume, it deletes until `target_percent`;
    that is looked at every `interval_ms`. An upload without room wakes it at once. Artifacts that are
    not in the object store yet go last.

    What SQLite or the disk refuses is logged and tried again; `failures` counts it.
    """

    def __init__(
        self,
        artifacts: CacheArtifacts,
        database: Database,
        capacity: Capacity,
        telemetry: Events,
        *,
        high_percent: float,
        target_percent: float,
        interval_ms: int,
        patience_ms: int = 1_000,
        commit_timeout_ms: int = 10_000,
    ) -> None:
        """How long uploads wait when nothing can be deleted any more.

        `patience_ms` for what others hold, `commit_timeout_ms` for the commit of what was deleted: as
        long as they would wait for their own.
        """
        self._artifacts = artifacts
        self._database = database
        self._capacity = capacity
        self._telemetry = telemetry
        self._high_percent = high_percent
        self._target_percent = target_percent
        self._interval_s = interval_ms / 1_000
        # Not all workers at once: with what one of them gives back the next gets by.
        self._patience_s = patience_ms / 1_000 * (1 + capacity.books.worker % 4 / 4)
        self._commit_timeout_s = commit_timeout_ms / 1_000
        self._line = WaitingLine()
        self._draining = False
        self._rows_wait = False
        self._failing = False
        self.failures = 0
        """Artifacts that could not be deleted, and passes that came to nothing."""

    async def make_room(self, size: int) -> bool:
        """Waits until `size` more bytes can be reserved; False when there will be no room for them now.

        Whoever hears True reserves before it awaits anything. False as well while `run` does not run.
        """
        return await self._line.join(size)

    def make_room_for_rows(self) -> None:
        """SQLite found the disk full: what is accepted comes before artifacts. Returns at once."""
        self._rows_wait = True
        self._line.news.set()

    async def run(self) -> None:
        """Evicts whenever there is a reason to, until it is cancelled or the node closes its parts."""
        self._line.open()
        try:
            while True:
                await self.run_once()
                await self._next()
        except ClosedError:
            return
        finally:
            self._line.close()

    async def _next(self) -> None:
        """Waits for an upload without room, at most until the next tick."""
        if self._failing:
            # Whoever joins now waits for this, too: no client can make it try without a pause.
            await asyncio.sleep(min(RETRY_S, self._interval_s))
            return
        self._line.news.clear()
        if not self._line and not self._rows_wait:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._line.news.wait()

    async def run_once(self) -> None:
        """Evicts until all is well, and answers everybody who waits for room. Raises `ClosedError`."""
        self._artifacts.open()
        one = Pass(self._capacity, "reservation" if self._line else "watermark")
        try:
            await self._evict(one)
        except ClosedError:
            raise
        except (apsw.Error, OSError, UndercroftError) as error:
            self._failed(error)
        else:
            self._recovered()
        finally:
            one.close()
            self._rows_wait = False  # if that was not enough, the next flush says so
            self._line.refuse_all()

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        if not self._failing:  # once, not at every attempt
            log.warning("disk_eviction_failed", error=f"{type(error).__name__}: {error}")
        self._failing = True

    def _recovered(self) -> None:
        if self._failing:
            log.info("disk_eviction_recovered")
        self._failing = False

    # --- one pass ---------------------------------------------------------------------------------

    async def _evict(self, one: Pass) -> None:
        """Sweeps until nobody waits for room any more, one way or the other."""
        since = time.monotonic()
        while True:
            if await self._sweep(one):
                since = time.monotonic()
            if not self._line:
                return
            patience = self._commit_timeout_s if self._capacity.awaits_commit else self._patience_s
            if time.monotonic() - since >= patience or not self._may_hope(one):
                self._give_up(one)
            if one.may_flush and self._capacity.awaits_commit:
                one.may_flush = await self._flush()
            else:
                await asyncio.sleep(POLL_S)

    def _may_hope(self, one: Pass) -> bool:
        """Whether room may come yet: from uploads that end, from readers that do.

        And from what was published while the last sweep was under way, which it did not see.
        """
        return self._capacity.reserved > 0 or self._capacity.used > 0 or one.to_come > 0

    def _give_up(self, one: Pass) -> None:
        if one.to_come:
            # Whoever still reads what was deleted takes too long: others have to go in its place.
            one.see_the_truth()
        elif not self._line.serve(self._capacity.room(), overtaking=True):
            # Not all at once: with what those held that are sent away the others may get by.
            self._line.refuse_some()

    async def _sweep(self, one: Pass) -> bool:
        """Evicts until there is room enough or nothing left; answers whether that changed anything."""
        before, served = one.artifacts, self._line.serve(self._capacity.room())
        if one.may_spare:
            served += await self._sweep_rows(one, SPARING_UPLOADS, spare_used=True)
        served += await self._sweep_rows(one, ALL, spare_used=False)
        return served > 0 or one.artifacts > before

    async def _sweep_rows(self, one: Pass, query: str, *, spare_used: bool) -> int:
        """Evicts what the query finds, the longest unused first; answers how many uploads got room.

        But before all others what has a time to come, from a clock that was ahead: it would stay until then,
        and everything that is stored meanwhile would go in its place.
        """
        served = spared_slices = found = 0
        after, since = last_until(now_us() + MOST_AHEAD_US), time.monotonic()
        comes_round = False
        while self._too_many(one) > 0 and spared_slices < MOST_SPARED_SLICES:
            rows = await self._choose(one, query, after)
            if not rows and not comes_round:
                after, comes_round = FIRST, True
                continue
            if not rows:
                if spare_used and not found:
                    one.nothing_to_spare(since)
                break
            after = rows[-1]
            if spare_used:
                rows = [row for row in rows if not row.uploading]
            if rows:
                before, found = one.rows_gone, found + len(rows)
                served += await self._evict_rows(one, rows, spare_used=spare_used)
                spared_slices = 0 if one.rows_gone > before else spared_slices + spare_used
        return served

    def _too_many(self, one: Pass) -> int:
        """Bytes that have to go still."""
        to_come = one.to_come
        if self._excess(self._high_percent, to_come):
            self._draining = True
        too_many = self._excess(self._target_percent, to_come) if self._draining else 0
        self._draining = too_many > 0
        if self._rows_wait:
            too_many = max(too_many, ROOM_FOR_ROWS - self._capacity.room_to_come(to_come))
        if self._line:
            too_many = max(too_many, self._line.wanted - self._capacity.room_to_come(to_come))
        return too_many

    def _excess(self, percent: float, to_come: int) -> int:
        """Bytes above `percent`; with too many files any number of bytes is too few to stop at."""
        if self._capacity.excess_files(percent):
            return UNTIL_FEWER_FILES
        return self._capacity.excess(percent, to_come)

    async def _choose(self, one: Pass, query: str, after: Candidate) -> list[Candidate]:
        """The next slice of rows; the last of them is how far it was looked."""
        if one.may_flush:
            one.may_flush = await self._flush()
        values = {"used_at": after.used_at, "id": after.id, "rows": SLICE_ROWS, "look": LOOK_ROWS}
        return await self._database.read(
            lambda connection: [Candidate(*row) for row in connection.execute(query, values)]
        )

    async def _flush(self) -> bool:
        """Lets what was used lately count; answers whether it was committed in time."""
        try:
            async with asyncio.timeout(FLUSH_S):
                await self._artifacts.flush()
        except (TimeoutError, CommitTimeoutError):
            # Not even what was deleted can be committed on a full disk, so there is no waiting for it.
            log.warning("disk_eviction_by_committed_rows_only")
            return False
        return True

    # --- one slice --------------------------------------------------------------------------------

    async def _evict_rows(self, one: Pass, rows: Sequence[Candidate], *, spare_used: bool) -> int:
        """Evicts the rows until enough is freed; answers how many uploads got room by that."""
        served = 0
        while rows and (too_many := self._too_many(one)) > 0:
            chunk = _first_of(rows, too_many)
            rows = rows[len(chunk) :]
            evicting = (self._evict_one(row, spare_used=spare_used) for row in chunk)
            # A stop between a file and its row would leave a row without a file.
            results = await to_its_end(asyncio.gather(*evicting, return_exceptions=True))
            for row, result in zip(chunk, results, strict=True):
                self._count(one, row, result)
            served += self._line.serve(self._capacity.room())
        return served

    async def _evict_one(self, row: Candidate, *, spare_used: bool) -> int | None:
        return await self._artifacts.evict(row.key, unless_used_after=row.used_at if spare_used else EVER)

    def _count(self, one: Pass, row: Candidate, result: int | BaseException | None) -> None:
        """Tells what became of one artifact. Raises what is not about this one."""
        if isinstance(result, OSError):
            self.failures += 1
            one.failures_in_a_row += 1
            log.warning("artifact_not_evicted", key=row.key, error=str(result))
            if one.failures_in_a_row < MOST_FAILURES:
                return
        if isinstance(result, BaseException):
            raise result
        if result is None:
            return
        one.failures_in_a_row = 0
        one.rows_gone += 1
        if row.size and not result:
            return
        one.add(row, result)
        age = max(now_us() - row.used_at, 0) / 1_000_000
        self._telemetry.emit(events.DISK_EVICTED, {"bytes": result, "age_seconds": age}, {})


def _first_of(rows: Sequence[Candidate], too_many: int) -> Sequence[Candidate]:
    """As many of the rows as may go at once, none of them in vain."""
    total = 0
    for count, row in enumerate(rows[:CHUNK], start=1):
        total += row.size
        if total >= too_many:
            return rows[:count]
    return rows[:CHUNK]

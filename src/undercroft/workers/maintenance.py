"""Upkeep of the databases while they are in use: free pages, the WAL, the planner's statistics.

All of it goes through the writer thread, which does work in the order of its submission: a step waits
for the flushes before it and no flush waits for more than one step.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import apsw
import structlog

from undercroft.database import Database
from undercroft.database.upkeep import optimize, pages, vacuum_slice
from undercroft.errors import ClosedError
from undercroft.telemetry import events
from undercroft.telemetry.events import Events

T = TypeVar("T")

log = structlog.get_logger(__name__)

# Pages in one step of vacuum. 64 take 0.6 ms of the writer on an idle machine and 4 ms beside a thread
# that is always busy: for every page SQLite comes back to Python, which then waits for its global lock.
VACUUM_PAGES = 64
MOST_VACUUM_PAGES = 1_024

# Free pages that are left for the next inserts, which would otherwise lengthen the file again: what the
# largest transaction of a buffer, 8,000 key values of 490 bytes with their indexes, takes (4 MiB).
RESERVED_PAGES = 1_000

# A WAL of this size is cut (16 MiB): four times what it has when checkpoints keep up.
TRUNCATE_FROM_BYTES = 16 << 20

# Statistics age with the contents, which take days to be others.
OPTIMIZE_SECONDS = 86_400


class WriterShare:
    """How much of one kind of work the writer thread gets in one go, and how long it then has a rest.

    A step has as much time as it waited for its turn: where flushes leave the writer idle steps are at
    their smallest, and where flushes fill it this work still gets half of it, so that it can keep up.
    """

    def __init__(self, least: int, most: int, *, hurry: bool = False) -> None:
        self._usual = self._least = least
        self._hurry = hurry
        self._most = most
        self.amount = least

    def press(self, behind: bool) -> None:
        """Behind: steps become larger each time this is said, and have no rest; else as usual again."""
        self._hurry = behind
        self._least = min(self._least * 2, self._most) if behind else self._usual

    @property
    def hurries(self) -> bool:
        """Whether it is behind."""
        return self._hurry

    async def do(
        self, database: Database, step: Callable[[apsw.Connection, int], T], limit: int | None = None
    ) -> T:
        """Runs `step` with the amount it may do, `limit` at most; returns after the rest.

        Raises what `step` raises.
        """
        amount = self.amount if limit is None else min(self.amount, limit)
        submitted = time.perf_counter()

        def timed(connection: apsw.Connection) -> tuple[float, float, T]:
            started = time.perf_counter()
            result = step(connection, amount)
            return started - submitted, time.perf_counter() - started, result

        waited, worked, result = await database.write(timed)
        self._learn(waited, worked)
        await self._rest(database, worked - waited)
        return result

    async def _rest(self, database: Database, seconds: float) -> None:
        # Others had their turn while this waited for its own.
        if self._hurry or seconds <= 0:
            await asyncio.sleep(0)
            return
        await database.relieve_wal()
        await asyncio.sleep(seconds)

    def _learn(self, waited: float, worked: float) -> None:
        # In steps of two at most: one wait says little about the next.
        factor = min(max(waited / worked, 0.5), 2.0) if worked else 2.0
        self.amount = min(max(int(self.amount * factor), self._least), self._most)


async def vacuum(database: Database, telemetry: Events, keep: int, *, hurry: bool = False) -> int:
    """Gives free pages back until `keep` are left, in small steps; answers how many.

    Ends as well when a step gives nothing back. Raises what SQLite raises, `apsw.BusyError` under the
    lock of another process.
    """
    share = WriterShare(VACUUM_PAGES, MOST_VACUUM_PAGES, hurry=hurry)
    free = (await database.read(pages)).free
    given_back = 0
    while free > keep:
        with telling_busy(telemetry, database, "vacuum"):
            step = await share.do(database, vacuum_slice, limit=free - keep)
        if step.given_back <= 0:
            break
        tell(telemetry, database, "vacuum", pages=step.given_back)
        given_back += step.given_back
        free = step.left.free
    return given_back


async def truncate(database: Database, telemetry: Events) -> bool:
    """Empties and cuts the WAL, unless somebody is in the way. Raises other errors of SQLite."""
    copied = await database.truncate_wal()
    tell(telemetry, database, "truncate", "busy" if copied is None else "done", copied or 0)
    return copied is not None


@contextmanager
def telling_busy(telemetry: Events, database: Database, step: str) -> Iterator[None]:
    """Emits as well that a step met a lock."""
    try:
        yield
    except (apsw.BusyError, apsw.LockedError):
        tell(telemetry, database, step, "busy")
        raise


def tell(telemetry: Events, database: Database, step: str, result: str = "done", pages: int = 0) -> None:
    """Emits that a step was done, or that somebody was in the way."""
    labels = {"database": database.path.stem, "step": step, "result": result}
    telemetry.emit(events.UPKEEP, {"pages": pages}, labels)


class Maintenance:
    """Gives free pages back, cuts a WAL that grew, renews statistics; every `interval_ms`.

    One database that is locked, or fails otherwise, is logged once and tried again at the next tick;
    the others get their turn all the same.
    """

    def __init__(self, databases: Sequence[Database], telemetry: Events, interval_ms: int) -> None:
        self._databases = tuple(databases)
        self._telemetry = telemetry
        self._interval_ms = interval_ms
        self._optimized: dict[Database, float] = {}
        self._failing: dict[Database, str] = {}

    async def run(self) -> None:
        """Looks after the databases until it is cancelled, or they are closed."""
        while True:
            try:
                await self.run_once()
            except ClosedError:
                return
            await asyncio.sleep(self._interval_ms / 1_000)

    async def run_once(self) -> None:
        """Does what there is to do, for every database. Raises `ClosedError`."""
        for database in self._databases:
            try:
                await self._look_after(database)
            except (apsw.Error, OSError) as error:  # most often: another process holds a lock
                self._failed(database, error)
            else:
                self._recovered(database)

    async def _look_after(self, database: Database) -> None:
        await self._optimize_if_due(database)
        await vacuum(database, self._telemetry, RESERVED_PAGES)
        # After the vacuum, whose pages were written to the WAL as well.
        if database.size_on_disk().wal >= TRUNCATE_FROM_BYTES:
            await truncate(database, self._telemetry)

    async def _optimize_if_due(self, database: Database) -> None:
        last = self._optimized.get(database)
        if last is None or time.monotonic() - last >= OPTIMIZE_SECONDS:
            with telling_busy(self._telemetry, database, "optimize"):
                await database.write(optimize)
            self._optimized[database] = time.monotonic()
            tell(self._telemetry, database, "optimize")

    def _failed(self, database: Database, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        if self._failing.get(database) != reason:
            log.warning("maintenance_failed", database=database.path.name, error=reason)
        self._failing[database] = reason

    def _recovered(self, database: Database) -> None:
        if self._failing.pop(database, None) is not None:
            log.info("maintenance_recovered", database=database.path.name)

"""Reconcile: files and rows are compared, round after round, slowly, in the background."""

import asyncio
import time

import apsw
import structlog

from undercroft.artifacts import CacheArtifacts
from undercroft.clock import now_us
from undercroft.database import Database
from undercroft.database.boots import first_start
from undercroft.database.cursors import Cursors, NoCursors
from undercroft.errors import ClosedError, UndercroftError
from undercroft.hydration import Cleaning
from undercroft.s3.object_store import ObjectStore
from undercroft.s3.transfers import S3Transfers
from undercroft.settings_sections import ReconcileSection
from undercroft.storage.boot import boot_id
from undercroft.storage.disk import Disk
from undercroft.telemetry import events
from undercroft.telemetry.events import Events
from undercroft.workers.pace import Clock, Pace, PacedDigest, Sleep
from undercroft.workers.reconcile_files import FileCheck
from undercroft.workers.reconcile_round import CURSOR, Reported, Round, Stage
from undercroft.workers.reconcile_rows import RowCheck

log = structlog.get_logger(__name__)

# Another process on the same data directory publishes a file first and commits its row soon after: within
# its flush interval and the retries of a locked database.
GRACE_MS = 60_000

# Between two rounds of an empty node that is told not to pause.
LEAST_PAUSE_S = 1.0

# After a round that has not seen everything the next one comes so soon, if the pause is not shorter: one
# that could not be finished, or one whose beginning an earlier process did, before it perhaps crashed.
RETRY_S = 10.0


class Reconcile:
    """Finds files without rows, rows without files, and files that are not what their rows say.

    First all files, then all rows, at most `files_per_second` of them and `bytes_per_second` read for
    digests, one at a time; then a pause of `pause_ms`. How far it has come survives a restart. What
    cannot be looked at now is logged, counted, and left for the next round.
    """

    round: Round | None = None
    """The one in work, or the last one."""

    def __init__(
        self,
        artifacts: CacheArtifacts,
        disk: Disk,
        database: Database,
        transfers: S3Transfers | None,
        object_store: ObjectStore | None,
        *,
        telemetry: Events,
        cleaning: Cleaning,
        settings: ReconcileSection,
        grace_ms: int = GRACE_MS,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """Make it before the node listens: from now on files count as written in this boot.

        `grace_ms`: a file younger than that is left alone while another process has the data directory.
        """
        self._database = database
        self._telemetry = telemetry
        self._pause_s = settings.pause_ms / 1_000
        self._clock = clock
        self._sleep = sleep
        self._started = (boot_id(), now_us())
        self._cursors: Cursors = Cursors(database)
        self._reported = Reported()
        pace = Pace(settings.files_per_second, clock, sleep)
        self._digests = PacedDigest(artifacts.threads, Pace(settings.bytes_per_second, clock, sleep))
        self._files = FileCheck(
            artifacts,
            disk,
            database,
            object_store,
            digests=self._digests,
            pace=pace,
            grace_us=grace_ms * 1_000,
            clock=clock,
            cleaning=cleaning,
        )
        fetch = transfers if object_store is not None else None
        self._rows = RowCheck(artifacts, disk, database, fetch, digests=self._digests, pace=pace)

    async def run(self) -> None:
        """Goes round until it is cancelled or the node closes its parts."""
        while True:
            try:
                pause_s = self._pause_s if await self.run_round() else min(self._pause_s, RETRY_S)
            except ClosedError:
                return
            await self._sleep(max(pause_s, LEAST_PAUSE_S))

    async def run_once(self) -> bool:
        """One round through everything, whatever another process has done of it; answers like `run_round`."""
        self._cursors = NoCursors()
        return await self.run_round()

    async def run_round(self) -> bool:
        """Goes on from where the last round was left, to the end; answers whether it has seen everything.

        Raises `ClosedError`.
        """
        round_ = Round(self._cursors, self._telemetry, self._reported, clock=self._clock, sleep=self._sleep)
        self.round = round_
        hashed_before = self._digests.hashed
        try:
            resumed = await self._go_through(round_)
        except ClosedError:
            raise
        except (apsw.Error, OSError, UndercroftError) as error:
            round_.failed("round", error)
            return False
        self._telemetry.emit(events.RECONCILE_ROUND, {"duration_seconds": round_.seconds}, {})
        bytes_hashed = self._digests.hashed - hashed_before
        log.info("reconcile_round", resumed=resumed, bytes_hashed=bytes_hashed, **round_.figures())
        return not resumed

    async def _go_through(self, round_: Round) -> bool:
        """Answers whether an earlier process, or a round that failed, had done the beginning."""
        stage, place, resumed = await self._position()
        log.info("reconcile_begins", stage=stage, place=place)
        # Asked again in each round, because the first time the database may have been locked.
        whole_since = await first_start(self._database, *self._started)
        if stage == "files":
            await self._files.run(round_, place, whole_since)
            place = ""
            await round_.come_to("rows", place, save=True)
        await self._rows.run(round_, place)
        await self._cursors.clear(CURSOR)
        return resumed

    async def _position(self) -> tuple[Stage, str, bool]:
        position = await self._cursors.load(CURSOR)
        stage, _, place = (position or "files:").partition(":")
        return "rows" if stage == "rows" else "files", place, position is not None

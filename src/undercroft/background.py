"""Everything that happens to bytes after they were stored: the workers, put together and started here."""

import asyncio
from collections.abc import Awaitable, Callable, Collection

from undercroft.buffers import SQLiteBuffer
from undercroft.buffers.key_values import KeyValueEvent, KeyValueState
from undercroft.config import Settings
from undercroft.s3.transfer_worker import TransferWorker
from undercroft.storage.capacity import Capacity
from undercroft.supervisor import Supervisor
from undercroft.telemetry.events import Events
from undercroft.telemetry.life_metrics import Figures
from undercroft.workers.clean_project import CleanProject, CleanTarget
from undercroft.workers.disk_eviction import DiskEviction
from undercroft.workers.key_value_eviction import KeyValueEviction
from undercroft.workers.maintenance import Maintenance
from undercroft.workers.reconcile import Reconcile
from undercroft.workers.spare_memory import SpareMemory
from undercroft.workers.turn import Turn


class BackgroundWork:
    """The workers of one process. Of several processes on one data directory one has the turn."""

    def __init__(
        self,
        settings: Settings,
        telemetry: Events,
        parts: CleanTarget,
        capacity: Capacity,
        key_value_buffer: SQLiteBuffer[KeyValueState, KeyValueEvent],
    ) -> None:
        self._parts = parts
        self._databases = (parts.key_value_database, parts.node_database)
        self._turn = Turn(settings.data_dir / "background.lock")
        self.disk_eviction = DiskEviction(
            parts.artifacts,
            parts.node_database,
            capacity,
            telemetry,
            high_percent=settings.disk.high_watermark_percent,
            target_percent=settings.disk.target_percent,
            interval_ms=settings.disk.eviction_interval_ms,
            commit_timeout_ms=settings.buffers.commit_timeout_ms,
        )
        parts.artifacts.intake.make_room = self.disk_eviction.make_room
        for database in self._databases:
            database.on_full = self.disk_eviction.make_room_for_rows
        self._key_value_eviction = KeyValueEviction(
            parts.key_value_database,
            key_value_buffer,
            telemetry,
            max_age_days=settings.key_values.max_age_days,
            max_database_bytes=settings.key_values.max_database_bytes,
            interval_ms=settings.key_values.eviction_interval_ms,
        )
        self._maintenance = Maintenance(self._databases, telemetry, settings.maintenance.interval_ms)
        self._spare_memory = SpareMemory(self._databases, telemetry)
        self.clean_project = CleanProject(parts._replace(in_work=self._in_work_under), telemetry)
        self.reconcile = Reconcile(
            parts.artifacts,
            parts.disk,
            parts.node_database,
            parts.transfers,
            parts.object_store,
            telemetry=telemetry,
            cleaning=self.clean_project,
            settings=settings.reconcile,
        )
        self._transfers = self._transfer_worker(settings, telemetry)

    def _transfer_worker(self, settings: Settings, telemetry: Events) -> TransferWorker | None:
        if self._parts.object_store is None:
            return None
        return TransferWorker(
            self._parts.transfers,
            self._parts.artifacts,
            self._parts.disk,
            self._parts.object_store,
            telemetry,
            settings=settings.object_store,
            cleaning=self.clean_project,
        )

    async def _in_work_under(self, prefix: str) -> Collection[asyncio.Future[None]]:
        """For the cleaning, which is made before the transfers that need it."""
        return () if self._transfers is None else await self._transfers.in_work_under(prefix)

    async def start(self, supervisor: Supervisor) -> None:
        """Reads what was left undone, then starts every worker. Nothing here is waited for."""
        await self.clean_project.open()
        # In every process: an upload without room waits for it.
        supervisor.start_background("disk eviction", self.disk_eviction.run())
        supervisor.start_background("clean requests", self.clean_project.follow())
        # And memory is a process's own.
        supervisor.start_background("spare memory", self._spare_memory.run())
        for name, worker in (
            ("transfers", self._transfers),
            ("key value eviction", self._key_value_eviction),
            ("maintenance", self._maintenance),
            ("reconcile", self.reconcile),
            ("clean project", self.clean_project),
        ):
            if worker is not None:
                supervisor.start_background(name, self._in_turn(worker.run))

    async def _in_turn(self, run: Callable[[], Awaitable[None]]) -> None:
        await self._turn.wait()
        await run()

    async def stop(self) -> None:
        """Gives back the transfers in work, after their worker was cancelled. Idempotent."""
        if self._transfers is not None:
            await self._transfers.stop()

    def give_up_turn(self) -> None:
        """Lets another process on this data directory go on. Idempotent."""
        self._turn.give_up()

    @property
    def transfers_in_work(self) -> int:
        """Transfers being made by this process."""
        return 0 if self._transfers is None else self._transfers.in_work

    def figures(self) -> Figures:
        """What is asked at each scrape."""
        transfers, worker, (key_values, node) = self._parts.transfers, self._transfers, self._databases
        return {
            "undercroft_databases_damaged": (
                "Databases in which a damaged page was met: docs/operations.md says what to do",
                lambda: sum(database.damage is not None for database in self._databases),
            ),
            "undercroft_transfers_parked": (
                "Transfers that wait for `undercroft transfers retry`",
                lambda: transfers.parked,
            ),
            "undercroft_transfers_in_work": (
                "Transfers being made",
                lambda: self.transfers_in_work,
            ),
            "undercroft_transfers_limit": (
                "Most transfers at once, now",
                lambda: worker.limit if worker is not None and self._turn.is_held else 0,
            ),
            "undercroft_key_values_database_bytes": (
                "Size of the database of key values with its WAL",
                lambda: key_values.size_on_disk().total,
            ),
            "undercroft_node_database_bytes": (
                "Size of the database of artifacts and transfers with its WAL",
                lambda: node.size_on_disk().total,
            ),
            "undercroft_clean_jobs_unfinished": (
                "Projects that are being cleaned",
                lambda: self.clean_project.unfinished,
            ),
        }

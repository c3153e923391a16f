"""The node: every part, in the order in which it is built, started and stopped. Start here to read."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog

from undercroft import start_checks
from undercroft.api.accel import Accel
from undercroft.api.app import Application
from undercroft.api.clean import CleanApi
from undercroft.api.dialects import dialect_routes
from undercroft.api.health import Check, HealthApi, SpecApi, buffer_check, database_check, disk_check
from undercroft.api.routing import Route
from undercroft.api.services import Services
from undercroft.api.status import StatusApi
from undercroft.artifacts import CacheArtifacts
from undercroft.auth.counted_gate import CountedGate
from undercroft.auth.grants import Gate
from undercroft.auth.tokens import TokenGate
from undercroft.auth.tuist_client import TuistClient
from undercroft.auth.tuist_jwt import TuistTokens
from undercroft.auth.tuist_server import TuistGate
from undercroft.background import BackgroundWork
from undercroft.buffers import SQLiteBuffer
from undercroft.buffers.cache_artifacts import CacheArtifactsBuffer
from undercroft.buffers.key_values import KeyValueBuffer
from undercroft.buffers.s3_transfers import S3TransfersBuffer
from undercroft.config import Settings, url_of
from undercroft.database import Database
from undercroft.database.schema import KEY_VALUES, NODE
from undercroft.errors import RowsLostError
from undercroft.http.limits import Limits
from undercroft.http.server import HttpServer, bind
from undercroft.hydration import HydrationTimes, Outdated
from undercroft.key_values import KeyValueStore
from undercroft.multipart import MultipartUploads
from undercroft.processes.place import Place
from undercroft.processes.together import Together, shared_books, worker_figures
from undercroft.processes.worker_application import WorkerApplication
from undercroft.read_through import ReadThrough, SecondTier
from undercroft.s3.object_store import ObjectStore, open_object_store
from undercroft.s3.transfers import S3Transfers
from undercroft.storage.capacity import Capacity, volume_of
from undercroft.storage.disk import Disk
from undercroft.storage.layout import directory_identity
from undercroft.storage.ledger import Entry
from undercroft.storage.vouching import check_that_files_vouch
from undercroft.supervisor import Crash, Supervisor
from undercroft.telemetry.auth_metrics import AuthMetrics
from undercroft.telemetry.buffer_metrics import BufferMetrics
from undercroft.telemetry.events import Events
from undercroft.telemetry.life_metrics import LifeMetrics
from undercroft.telemetry.prometheus import Prometheus
from undercroft.telemetry.recent_warnings import RECENT
from undercroft.telemetry.status import Marks, Status, StatusReport
from undercroft.telemetry.traffic_metrics import TrafficMetrics
from undercroft.workers.clean_project import CleanTarget

log = structlog.get_logger(__name__)


class Node:
    """All parts of one process. The constructor only puts them together; `start` touches the world."""

    failed_drain: Crash | None = None
    """The first buffer whose drain raised; its rows were spilled."""

    def __init__(self, settings: Settings, place: Place | None = None) -> None:
        """Of several processes that serve together each has a `place`."""
        self.settings = settings
        self._place = place
        self.telemetry = Events()
        self.supervisor = Supervisor()
        synchronous = settings.database.synchronous
        self.key_value_database = Database(
            settings.data_dir / "key_values.sqlite", KEY_VALUES, synchronous=synchronous
        )
        self.node_database = Database(settings.data_dir / "node.sqlite", NODE, synchronous=synchronous)
        self.databases = (self.key_value_database, self.node_database)
        buffers = settings.buffers
        self.key_value_buffer = SQLiteBuffer(
            KeyValueBuffer(), self.key_value_database, self.telemetry, buffers.of("key_values"), place
        )
        self.artifact_buffer = SQLiteBuffer(
            CacheArtifactsBuffer(), self.node_database, self.telemetry, buffers.of("cas_artifacts"), place
        )
        self.transfer_buffer = SQLiteBuffer(
            S3TransfersBuffer(), self.node_database, self.telemetry, buffers.of("s3_transfers"), place
        )
        self.buffers: tuple[SQLiteBuffer[Any, Any], ...] = (
            self.key_value_buffer,
            self.artifact_buffer,
            self.transfer_buffer,
        )
        self.disk = Disk(settings.data_dir, fsync=settings.disk.fsync)
        self.capacity = Capacity(
            volume_of(settings.data_dir),
            settings.disk.limit_bytes,
            settings.disk.limit_percent,
            shared_books(place, self.artifact_buffer),
        )
        self.key_values = KeyValueStore(self.key_value_database, self.key_value_buffer, settings.ack)
        self.transfers = S3Transfers(self.node_database, self.transfer_buffer, self.telemetry)
        self.object_store = self._object_store()
        self.artifacts = CacheArtifacts(
            self.node_database,
            self.artifact_buffer,
            self.disk,
            self.capacity,
            settings.ack,
            transfers=self.transfers if self.object_store is not None else None,
        )
        self.background = BackgroundWork(
            settings,
            self.telemetry,
            CleanTarget(
                self.key_value_database,
                self.node_database,
                self.key_values,
                self.artifacts,
                self.disk,
                self.transfers,
                self.object_store,
            ),
            self.capacity,
            self.key_value_buffer,
        )
        self.read_through = ReadThrough(self.artifacts, self.telemetry, self._second_tier())
        self.multipart = MultipartUploads(self.artifacts, self.capacity, self.telemetry, settings.uploads)
        self.prometheus = Prometheus()
        self.buffer_metrics = BufferMetrics(self.prometheus, self.telemetry, self.buffers)
        self.traffic_metrics = TrafficMetrics(self.prometheus, self.telemetry, self.capacity)
        parts = (self.background, self.read_through, self.multipart)
        figures = {name: figure for part in parts for name, figure in part.figures().items()}
        figures |= worker_figures(place)
        self.life_metrics = LifeMetrics(self.prometheus, self.telemetry, figures)
        self.auth_metrics = AuthMetrics(self.prometheus, self.telemetry)
        self.tuist_gate = self._tuist_gate()
        self.gate = self._gate()
        self.status_report = self._status_report()
        self.status_api = StatusApi(self._status, self.gate)
        self.application, self.together = self._application()
        self.server: HttpServer | None = None
        self.port = settings.port
        self.stop_asked_at = 0.0

    def _application(self) -> tuple[Application, Together | None]:
        """What answers requests; several processes do so together."""
        if self._place is None:
            return Application(self._routes(), self.gate), None
        application = WorkerApplication(self._routes(), self.gate)
        refresh, status = self._refresh_metrics, self.status_report.now
        return application, Together(self._place, application, self.prometheus, refresh, status)

    # --- the second tier --------------------------------------------------------------------------

    def _object_store(self) -> ObjectStore | None:
        """The client; it connects to nothing yet. Raises `SettingsError`."""
        section = self.settings.object_store
        if section.url is None:
            return None
        return open_object_store(section.connection(section.url), self.telemetry)

    def _second_tier(self) -> SecondTier | None:
        if self.object_store is None:
            return None
        section = self.settings.object_store
        times = HydrationTimes.of(section)
        outdated = Outdated(self.transfers, self.background.clean_project)
        return SecondTier(self.object_store, self.transfers, times, outdated, section.redirect)

    # --- what is served ---------------------------------------------------------------------------

    def _routes(self) -> list[Route]:
        """Every dialect with its part of the services, and what the node says of itself."""
        services = Services(
            self.artifacts,
            self.read_through,
            self.key_values,
            self.telemetry,
            self.settings.uploads,
            self.disk.artifacts,
            self.multipart,
            self.settings.auth.mode != "none",
            self._accel(),
        )
        health = HealthApi(
            self._checks(),
            self._missing_workers,
            self._render_metrics if self.settings.http.metrics else None,
            "nothing" if self.settings.auth.open_metrics else "any",
        )
        clean = CleanApi(self.background.clean_project)
        routes = [*dialect_routes(services), *clean.routes(), *health.routes(), *self.status_api.routes()]
        return [*routes, *SpecApi(routes).routes()]

    def _accel(self) -> Accel | None:
        prefix = self.settings.http.accel_redirect
        return None if prefix is None else Accel(self.disk.artifacts, prefix)

    def _status_report(self) -> StatusReport:
        disk = self.settings.disk
        return StatusReport(
            self.telemetry,
            self.buffers,
            self.capacity,
            volume_of(self.settings.data_dir),
            Marks(disk.high_watermark_percent, disk.target_percent, disk.limit_percent),
            data_directory=lambda: directory_identity(self.settings.data_dir),
            warnings=RECENT,
            count_transfers=self.transfers.count,
            in_work=lambda: self.background.transfers_in_work,
            parked=lambda: self.transfers.parked,
            has_object_store=self.object_store is not None,
        )

    def _gate(self) -> Gate | None:
        """Who lets requests in; None where everybody may do everything."""
        auth = self.settings.auth
        if auth.mode == "none":
            return None
        gate: Gate = self.tuist_gate or TokenGate(
            self.node_database, self.telemetry, anonymous_read=auth.anonymous_read
        )
        return CountedGate(gate, self.telemetry)

    def _tuist_gate(self) -> TuistGate | None:
        """The gate that has connections, so it is opened and closed. Raises `SettingsError`."""
        auth = self.settings.auth
        if auth.mode != "tuist" or auth.tuist_server_url is None:
            return None
        secret = auth.tuist_jwt_secret
        return TuistGate(
            TuistClient(auth.tuist_server_url, self.telemetry, timeout_ms=auth.tuist_timeout_ms),
            self.telemetry,
            tokens=None if secret is None else TuistTokens(secret.get_secret_value()),
            anonymous_read=auth.anonymous_read,
        )

    def _checks(self) -> list[Check]:
        return [
            *(database_check(database) for database in self.databases),
            disk_check(self.disk),
            *(buffer_check(buffer) for buffer in self.buffers),
        ]

    async def _refresh_metrics(self) -> None:
        self.traffic_metrics.set_pending_transfers(await self.transfers.count())

    async def _render_metrics(self) -> tuple[bytes, str]:
        if self.together is not None:
            return await self.together.render()
        await self._refresh_metrics()
        return self.prometheus.render()

    async def _status(self) -> Status:
        return await (self.status_report.now if self.together is None else self.together.status)()

    def _missing_workers(self) -> str | None:
        return None if self.together is None else self.together.missing()

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Opens everything, the address last: whoever can connect is served.

        Raises an `UndercroftError` that says what is wrong; then `stop` undoes what was done.
        """
        # The port first of all, though nobody is let in yet: a second node on it must not touch the data.
        bound = self._place.listener if self._place else bind(self.settings.host, self.settings.port)
        self.server = HttpServer(self.application, bound, Limits(self.settings.http.max_connections))
        self.port = bound.getsockname()[1]
        await start_checks.check_object_store(self.settings.object_store, self.object_store)
        await self.open_data()
        await self.background.start(self.supervisor)
        self.supervisor.start_background("uploads in parts", self.multipart.run())
        if in_vain := self.settings.auth.without_effect():
            log.warning("tuist_settings_without_mode", without_effect=in_vain)
        if self.tuist_gate is not None:
            self.tuist_gate.open()
        if self.together is not None:
            await self.together.open()
        # At once, not when the worker gets its turn: who reads "listening" may connect.
        self.server.listen()
        self.supervisor.start("http server", self.server.run())
        if self._place is None or self._place.number == 0:
            start_checks.tell_who_may_enter(self.settings.auth, self.node_database)
        self._tell_that_it_serves()

    async def open_data(self) -> None:
        """Opens what touches the data directory, without serving and without background work.

        For commands, which are another process on it, beside a node or alone. Raises like `start`.
        """
        for database in self.databases:
            # Before anything is swept up, migrated or replayed: what a newer version wrote stays as it is.
            database.check()
        self.disk.open_directories()
        check_that_files_vouch(self.disk, alone=self._place is None)
        if self._place is not None:
            # Now that what the one before it had begun to write is swept.
            self._place.ledger.clear(self._place.number)
        for database in self.databases:
            database.open()
        for buffer in self.buffers:
            # Rows that the last process spilled are replayed here, before anything newer can come.
            await buffer.open()
            self.supervisor.start(f"buffer {buffer.name}", buffer.run())
        # After the replay: it reads how much all rows say there is.
        self.artifacts.open()

    def _tell_that_it_serves(self) -> None:
        if self._place is not None:
            log.info("worker_serves")
            self._place.ledger.set(self._place.number, Entry.SERVES, 1)
            self._place.serves()  # the parent says "listening" when all do
            return
        log.info(
            "listening",
            url=self.url,
            data_dir=str(self.settings.data_dir),
            ack=self.settings.ack,
            auth=self.settings.auth.mode,
        )

    @property
    def url(self) -> str:
        """Where the node listens."""
        return url_of(self.settings.host, self.port)

    def request_stop(self) -> None:
        """Lets whoever waits for the node to finish go on and stop it."""
        self.supervisor.request_stop()

    async def stop(self) -> None:
        """Stops in the order in which parts need each other. Idempotent.

        Raises `RowsLostError`. Other errors of a drain are in `failed_drain`.
        """
        self.supervisor.expect_end()
        # A page that is watched is a request without an end.
        self.status_api.stop()
        try:
            # Requests first: nothing new comes in, and those in progress may still need every other part.
            if self.server is not None:
                await self.server.stop(self.settings.http.stop_grace_ms)
            if self.together is not None:
                # Then what siblings have handed on; their own requests may still need that.
                await self.together.close(self.settings.http.stop_grace_ms)
        finally:
            # Nobody is let in any more.
            if self.tuist_gate is not None:
                await self.tuist_gate.close()
            # What makes more work for the rest: background workers, artifacts on their way here or half here.
            await self.supervisor.stop_background()
            await self.background.stop()
            await self.read_through.stop()
            await self.multipart.stop()
            # Then the buffers, all at once: each has `shutdown_ms` to commit or spill what it accepted.
            # An error of one must not cut off the others.
            lost = await asyncio.gather(*(self._close(buffer) for buffer in self.buffers))
            await self.supervisor.stop()
            # The disk's threads finish what a cancelled request left them.
            self.artifacts.close()
            # Databases after everything that writes to them; closing empties the WAL into the file.
            for database in self.databases:
                await database.close()
            # Now another process on this data directory may go on where this one ended.
            self.background.give_up_turn()
            # The directory of temporary files last: its lock tells other processes that this one lives.
            self.disk.close()
        if any(lost):
            raise RowsLostError("; ".join(reason for reason in lost if reason))

    async def _close(self, buffer: SQLiteBuffer[Any, Any]) -> str | None:
        """Drains or spills; answers why rows could be neither committed nor spilled."""
        try:
            await buffer.close()
        except OSError as error:
            log.exception("rows_lost", buffer=buffer.name)
            return f"rows accepted by buffer {buffer.name} are lost, {buffer.spill_path}: {error.strerror}"
        except Exception as error:  # a fault in one table's code; its rows were spilled
            log.exception("drain_failed", buffer=buffer.name)
            self.failed_drain = self.failed_drain or Crash(f"buffer {buffer.name}", error)
        return None


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[None]:
    """Starts the node; it is stopped on leaving, and when starting fails half-way."""
    try:
        await node.start()
        yield
    finally:
        await node.stop()

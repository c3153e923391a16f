"""How the node does, in one value: what the status page and `undercroft status` show."""

import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from statistics import median
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

import undercroft
from undercroft.buffers import SQLiteBuffer
from undercroft.storage.capacity import Capacity, Volume
from undercroft.telemetry import events
from undercroft.telemetry.activity import Activity, Period, merged
from undercroft.telemetry.events import Events, Measurements, Metadata
from undercroft.telemetry.recent_warnings import KEPT, RecentWarnings, Warned

# Flushes of a buffer that its flush time is taken of.
FLUSHES = 100

# What the object store's health is judged by.
STORE_WINDOW_S = 300.0
STORE_REQUESTS = 1_000

StoreHealth: TypeAlias = Literal["none", "unasked", "well", "failing"]


class BufferStatus(msgspec.Struct):
    """One buffer: what waits, and how its flushes went."""

    name: str
    rows: int
    bytes: int
    in_flight: int
    oldest_age_seconds: float
    flush_ms: float | None
    """Median of the last flushes."""
    longest_flush_ms: float | None
    retries: int
    """Since the start."""
    stalled: str | None
    """Why SQLite takes nothing now."""


class DiskStatus(msgspec.Struct):
    """Artifacts against their marks, which are shares of the limit and of the volume, in percent.

    `volume_bytes` are those in use and free to us, as `df` reckons.
    """

    used_bytes: int
    reserved_bytes: int
    limit_bytes: int
    volume_bytes: int
    free_bytes: int
    high_percent: float
    target_percent: float
    limit_percent: float
    evicted: int
    """Since the start."""
    eviction_age_seconds: float | None
    """How long ago the last evicted one was used."""


class TransferStatus(msgspec.Struct):
    """Rows that wait or are being worked on, and those of them that are parked."""

    uploads: int
    downloads: int
    deletes: int
    in_work: int
    parked: int


class StoreStatus(msgspec.Struct):
    """The object store, by the requests of the last five minutes."""

    health: StoreHealth
    requests: int
    errors: int
    """Of these; that something is absent is none."""


class Status(msgspec.Struct):
    """All of it, of one process or of several together."""

    version: str
    started_at: float
    """Seconds since the epoch; of the process that started last."""
    at: float
    workers: int
    data_directory: str
    """Which one it works in: equal for the same, not its path, which is nobody else's business.

    Empty while the disk fails.
    """
    hour: Period
    day: Period
    buffers: list[BufferStatus]
    disk: DiskStatus
    transfers: TransferStatus
    object_store: StoreStatus
    warnings: list[Warned]
    """The newest first."""


class Marks(NamedTuple):
    """Where eviction begins and ends, and where uploads are refused, in percent."""

    high: float
    target: float
    limit: float


class StatusReport:
    """Gathers the status of one process. Only the event loop asks and tells it anything."""

    def __init__(
        self,
        telemetry: Events,
        buffers: Sequence[SQLiteBuffer[Any, Any]],
        capacity: Capacity,
        volume: Callable[[], Volume],
        marks: Marks,
        *,
        data_directory: Callable[[], str],
        warnings: RecentWarnings,
        count_transfers: Callable[[], Awaitable[Mapping[str, int]]],
        in_work: Callable[[], int],
        parked: Callable[[], int],
        has_object_store: bool,
    ) -> None:
        self._data_directory = data_directory
        self._activity = Activity(telemetry)
        self._buffers = buffers
        self._capacity = capacity
        self._volume = volume
        self._marks = marks
        self._warnings = warnings
        self._count_transfers = count_transfers
        self._in_work = in_work
        self._parked = parked
        self._has_object_store = has_object_store
        self._started_at = time.time()
        self._flushes: dict[str, deque[float]] = {buffer.name: deque(maxlen=FLUSHES) for buffer in buffers}
        self._retries = {buffer.name: 0 for buffer in buffers}
        self._evicted = 0
        self._eviction_age: float | None = None
        self._store_requests: deque[tuple[float, bool]] = deque(maxlen=STORE_REQUESTS)
        telemetry.attach(events.FLUSH, self._on_flush)
        telemetry.attach(events.RETRY, self._on_retry)
        telemetry.attach(events.DISK_EVICTED, self._on_evicted)
        telemetry.attach(events.OBJECT_STORE_REQUEST, self._on_store_request)

    def _on_flush(self, measurements: Measurements, metadata: Metadata) -> None:
        self._flushes[metadata["buffer"]].append(measurements["duration_ms"])

    def _on_retry(self, measurements: Measurements, metadata: Metadata) -> None:
        self._retries[metadata["buffer"]] += int(measurements["count"])

    def _on_evicted(self, measurements: Measurements, _metadata: Metadata) -> None:
        self._evicted += 1
        self._eviction_age = measurements["age_seconds"]

    def _on_store_request(self, _measurements: Measurements, metadata: Metadata) -> None:
        self._store_requests.append((time.monotonic(), metadata["result"] in ("error", "throttled")))

    async def now(self) -> Status:
        """The status. Raises what counting transfers raises."""
        by_type = await self._count_transfers()
        return Status(
            version=undercroft.__version__,
            started_at=self._started_at,
            at=time.time(),
            workers=1,
            data_directory=self._identity(),
            hour=self._activity.hour(),
            day=self._activity.day(),
            buffers=[self._buffer(buffer) for buffer in self._buffers],
            disk=self._disk(),
            transfers=TransferStatus(
                by_type.get("upload", 0),
                by_type.get("download", 0),
                by_type.get("delete", 0),
                self._in_work(),
                self._parked(),
            ),
            object_store=self._store(),
            warnings=self._warnings.newest_first(),
        )

    def _identity(self) -> str:
        # A disk that fails is when the other figures are needed most.
        with suppress(OSError):
            return self._data_directory()
        return ""

    def _buffer(self, buffer: SQLiteBuffer[Any, Any]) -> BufferStatus:
        stats, flushes = buffer.queue_stats(), self._flushes[buffer.name]
        return BufferStatus(
            buffer.name,
            stats.rows,
            stats.bytes,
            buffer.rows_in_flight,
            buffer.oldest_age,
            median(flushes) if flushes else None,
            max(flushes, default=None),
            self._retries[buffer.name],
            buffer.stalled,
        )

    def _disk(self) -> DiskStatus:
        volume, limit = Volume(0, 0), 0
        with suppress(OSError):  # see `_identity`
            # An int of its own: settings have a subclass, which JSON does not know.
            volume, limit = self._volume(), int(self._capacity.limit())
        return DiskStatus(
            self._capacity.used,
            self._capacity.reserved,
            limit,
            volume.total,
            volume.free,
            self._marks.high,
            self._marks.target,
            self._marks.limit,
            self._evicted,
            self._eviction_age,
        )

    def _store(self) -> StoreStatus:
        since = time.monotonic() - STORE_WINDOW_S
        recent = [failed for at, failed in self._store_requests if at >= since]
        return StoreStatus(self._health(recent), len(recent), sum(recent))

    def _health(self, recent: list[bool]) -> StoreHealth:
        if not self._has_object_store:
            return "none"
        if not recent:
            return "unasked"
        # The last one says how it is now; one failure among many is nobody's trouble.
        return "failing" if recent[-1] and sum(recent[-10:]) > 1 else "well"


def together(statuses: Sequence[Status]) -> Status:
    """The status of several processes on one data directory as if they were one. `statuses` is not empty."""
    first = statuses[0]
    return Status(
        version=first.version,
        started_at=max(one.started_at for one in statuses),
        at=max(one.at for one in statuses),
        workers=sum(one.workers for one in statuses),
        data_directory=first.data_directory,
        hour=merged([one.hour for one in statuses]),
        day=merged([one.day for one in statuses]),
        buffers=[_one_buffer(parts) for parts in zip(*(one.buffers for one in statuses), strict=True)],
        disk=_one_disk([one.disk for one in statuses]),
        # The rows are the same for all; only one of them works on them.
        transfers=msgspec.structs.replace(
            first.transfers,
            in_work=sum(one.transfers.in_work for one in statuses),
            parked=max(one.transfers.parked for one in statuses),
        ),
        object_store=_one_store([one.object_store for one in statuses]),
        warnings=sorted((w for one in statuses for w in one.warnings), key=lambda w: w.at, reverse=True)[
            :KEPT
        ],
    )


def _one_buffer(parts: Sequence[BufferStatus]) -> BufferStatus:
    flushes = [part.flush_ms for part in parts if part.flush_ms is not None]
    longest = [part.longest_flush_ms for part in parts if part.longest_flush_ms is not None]
    return BufferStatus(
        parts[0].name,
        sum(part.rows for part in parts),
        sum(part.bytes for part in parts),
        sum(part.in_flight for part in parts),
        max(part.oldest_age_seconds for part in parts),
        median(flushes) if flushes else None,
        max(longest, default=None),
        sum(part.retries for part in parts),
        next((part.stalled for part in parts if part.stalled is not None), None),
    )


def _one_disk(parts: Sequence[DiskStatus]) -> DiskStatus:
    ages = [part.eviction_age_seconds for part in parts if part.eviction_age_seconds is not None]
    return msgspec.structs.replace(
        parts[0],
        evicted=sum(part.evicted for part in parts),
        eviction_age_seconds=min(ages, default=None),
    )


def _one_store(parts: Sequence[StoreStatus]) -> StoreStatus:
    worst: StoreHealth = "none"
    order: tuple[StoreHealth, ...] = ("none", "unasked", "well", "failing")
    for part in parts:
        worst = max(worst, part.health, key=order.index)
    return StoreStatus(worst, sum(part.requests for part in parts), sum(part.errors for part in parts))

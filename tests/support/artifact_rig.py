"""The artifact service over real files and a real database, with a volume of the test's choice."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import apsw

from tests.support.faulty_table import FaultyTable
from tests.support.recorded_events import RecordedEvents
from undercroft.artifacts import CacheArtifacts
from undercroft.buffers import BufferSettings, SQLiteBuffer
from undercroft.buffers.cache_artifacts import ArtifactEvent, CacheArtifactsBuffer, CacheArtifactsState
from undercroft.buffers.s3_transfers import S3TransfersBuffer, S3TransfersState, TransferEvent
from undercroft.database import Database
from undercroft.database.schema import NODE
from undercroft.s3.transfers import S3Transfers
from undercroft.storage.capacity import Capacity, Volume
from undercroft.storage.disk import Disk
from undercroft.storage.open_artifact import OpenArtifact
from undercroft.storage.upload import Stored

KEY = "acc/proj/xcode/ab/cd/abcdef"

# No flush unless somebody waits for one.
QUIET = BufferSettings(flush_interval_ms=3_600_000, retry_base_delay_ms=1, shutdown_ms=20_000)


async def body(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


class ArtifactRig:
    """All that the service needs, in a folder."""

    def __init__(
        self,
        folder: Path,
        *,
        ack: Literal["committed", "buffered"] = "committed",
        limit_bytes: int = 100_000_000,
        fsync: bool = False,
        settings: BufferSettings = QUIET,
        uploads: bool = False,
    ) -> None:
        """With `uploads` what is stored is queued for upload, as with an object store."""
        self.folder = folder
        self.volume = Volume(10**12, 10**12)
        self.telemetry = RecordedEvents()
        self.table = FaultyTable(CacheArtifactsBuffer())
        self.database = Database(folder / "node.sqlite", NODE)
        self.buffer: SQLiteBuffer[CacheArtifactsState, ArtifactEvent] = SQLiteBuffer(
            self.table.as_table, self.database, self.telemetry, settings
        )
        self.disk = Disk(folder, fsync=fsync)
        self.capacity = Capacity(lambda: self.volume, limit_bytes, 100.0)
        self.transfer_buffer: SQLiteBuffer[S3TransfersState, TransferEvent] = SQLiteBuffer(
            S3TransfersBuffer(), self.database, self.telemetry, settings
        )
        self.transfers = S3Transfers(self.database, self.transfer_buffer, self.telemetry)
        self.artifacts = CacheArtifacts(
            self.database,
            self.buffer,
            self.disk,
            self.capacity,
            ack,
            transfers=self.transfers if uploads else None,
        )

    async def open(self) -> "ArtifactRig":
        self.disk.open_directories()
        self.database.open()
        self.artifacts.open()
        self.runners = []
        for buffer in (self.buffer, self.transfer_buffer):
            await buffer.open()
            self.runners.append(asyncio.create_task(buffer.run()))
        return self

    async def close(self) -> None:
        self.table.open_gate()
        self.table.heal()
        for buffer in (self.buffer, self.transfer_buffer):
            await buffer.close()
        for runner in self.runners:
            runner.cancel()
            with suppress(asyncio.CancelledError):
                await runner
        self.artifacts.close()
        await self.database.close()
        self.disk.close()

    # --- acting ---

    async def store(
        self,
        *chunks: bytes,
        key: str = KEY,
        replace: bool = False,
        declared: int | None = None,
        sha256: str | None = None,
    ) -> Stored:
        return await self.artifacts.store(
            key, body(*chunks), declared_size=declared, replace=replace, expected_sha256=sha256
        )

    async def content(self, key: str = KEY) -> bytes | None:
        """What a reader gets; None for a miss."""
        found = await self.artifacts.read(key)
        return None if found is None else whole(found)

    def path(self, key: str = KEY) -> Path:
        return self.disk.artifacts / key

    # --- looking ---

    def rows(self) -> dict[str, tuple[int, str | None]]:
        """Size and digest by key, as another process sees them."""
        connection = apsw.Connection(str(self.database.path))
        try:
            sql = "SELECT key, size_bytes, content_sha256 FROM cache_artifacts"
            return {key: (size, digest) for key, size, digest in connection.execute(sql)}
        finally:
            connection.close()

    @property
    def accounts(self) -> tuple[int, int]:
        """Bytes used and reserved."""
        return self.capacity.used, self.capacity.reserved


def whole(found: OpenArtifact) -> bytes:
    try:
        return os.pread(found.descriptor, found.size + 1, 0)
    finally:
        os.close(found.descriptor)

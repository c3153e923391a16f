"""What is known of artifacts: their rows, committed or on their way to be."""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from msgspec.structs import replace

from undercroft.buffers import SQLiteBuffer, Ticket
from undercroft.buffers.cache_artifacts import (
    ArtifactAccess,
    ArtifactDelete,
    ArtifactEvent,
    CacheArtifactsState,
)
from undercroft.clock import now_us
from undercroft.database import Database
from undercroft.s3.transfers import S3Transfers
from undercroft.storage.label import Label
from undercroft.storage.upload import Stored

Ack: TypeAlias = Literal["committed", "buffered"]

ArtifactBuffer: TypeAlias = SQLiteBuffer[CacheArtifactsState, ArtifactEvent]


# What is asked for over and over is recorded as used so often: docs/decisions/0006-access-resolution.md.
ACCESS_RESOLUTION_US = 100_000


class Taken(NamedTuple):
    """What became of an upload, and the commits of its row and of its transfer, if they are to come."""

    stored: Stored
    row: Ticket | None
    upload: Ticket | None


class ArtifactRows:
    """The table of artifacts behind what is not committed yet, and the uploads that are queued."""

    def __init__(
        self, database: Database, buffer: ArtifactBuffer, transfers: S3Transfers | None, ack: Ack
    ) -> None:
        """With `transfers` what is stored is queued for upload to the object store."""
        self._database = database
        self._buffer = buffer
        self.transfers = transfers
        self._waits = ack == "committed"

    def total_bytes(self) -> int:
        """What all artifacts with a committed row take. Blocks."""
        row = self._database.find("SELECT size_bytes FROM artifact_totals")
        return 0 if row is None else int(row[0])

    def tell_total(self, take: Callable[[Callable[[], int]], None]) -> None:
        """Hands over how to ask for the total, if the database has all that is known here. Blocks."""
        if self._buffer.queue_stats().rows == 0:
            take(self.total_bytes)

    def find(self, key: str) -> ArtifactAccess | None:
        """What is known of the artifact, committed or not. One point query."""
        event = self._buffer.pending(key)
        if event is not None:
            return None if isinstance(event, ArtifactDelete) else event
        row = self._database.find(SELECT_ROW, key)
        if row is None:
            return None
        size_bytes, accessed_at, content_sha256, stored_at = row
        return ArtifactAccess(key, size_bytes, accessed_at, content_sha256, stored_at=stored_at)

    def is_current(self, row: ArtifactAccess) -> bool:
        """Whether the row is still what is known: it may have been replaced since.

        An access recorded with an old size would make a new row contradict its file.
        """
        now = self.find(row.key)
        said = row.size_bytes, row.content_sha256
        return now is not None and (now.size_bytes, now.content_sha256) == said

    def track_access(self, row: ArtifactAccess) -> None:
        """Records that the artifact was used now."""
        self._buffer.enqueue_nowait(ArtifactAccess(row.key, row.size_bytes, now_us()))

    def track_repeated_access(self, row: ArtifactAccess) -> ArtifactAccess:
        """Records that the artifact is used now, unless the row says so already; answers its row."""
        now = now_us()
        if 0 <= now - row.accessed_at < ACCESS_RESOLUTION_US:
            return row
        self._buffer.enqueue_nowait(ArtifactAccess(row.key, row.size_bytes, now))
        return replace(row, accessed_at=now)

    def record(self, row: ArtifactAccess, *, upload: bool) -> tuple[Ticket, Ticket | None]:
        """Records what was stored, or found, in one turn of the loop; the caller has waited for room."""
        ticket = self._buffer.enqueue_nowait(row, past_bound=True)
        if not upload or self.transfers is None:
            return ticket, None
        return ticket, self.transfers.enqueue_upload_nowait(row.key)

    async def wait_for_room(self, *, upload: bool = True) -> None:
        """Returns when `record` would be accepted; raises like `SQLiteBuffer.wait_for_room`."""
        await self._buffer.wait_for_room()
        if upload and self.transfers is not None:
            await self.transfers.wait_for_room()

    def before(self, key: str) -> Taken:
        """What has still to be committed of an artifact that is there."""
        upload = self.transfers.ticket_of_upload(key) if self.transfers is not None else None
        return Taken(Stored.EXISTS, self._buffer.ticket_of(key), upload)

    async def acknowledged(self, taken: Taken) -> Stored:
        """Returns when it is durable by the rule of `ack`; raises like `SQLiteBuffer.committed`."""
        if self._waits and taken.row is not None:
            await self._buffer.committed(taken.row)
        if self._waits and taken.upload is not None and self.transfers is not None:
            await self.transfers.committed(taken.upload)
        return taken.stored

    async def queue_delete(self, key: str) -> Ticket | None:
        """Has the object store forget the artifact; it is to be `deleted` once the file is gone."""
        return None if self.transfers is None else await self.transfers.enqueue_delete(key)

    async def deleted(self, ticket: Ticket | None) -> None:
        """Returns when that is durable by the rule of `ack`."""
        if ticket is not None and self.transfers is not None and self._waits:
            await self.transfers.committed(ticket)

    async def flush(self) -> None:
        """Commits what is pending."""
        await self._buffer.flush()
        if self.transfers is not None:
            await self.transfers.flush()

    async def forget(self, row: ArtifactAccess) -> None:
        """Deletes this row, not one of what was stored since."""
        await self._buffer.enqueue(ArtifactDelete(row.key, row.stored_at))


def agrees(row: ArtifactAccess | None, label: Label) -> bool:
    """Whether the row is of the very file that has the label, not only of one with the same bytes."""
    return row is not None and label[:3] == (row.size_bytes, row.content_sha256, row.stored_at)


def row_of_label(key: str, label: Label, known: ArtifactAccess | None, accessed_at: int) -> ArtifactAccess:
    """The row of a file with that label, to take the place of what is `known`, and of nothing else."""
    instead_of = (known.stored_at or 0) if known is not None else 0
    size_bytes, content_sha256, stored_at, _ = label
    return ArtifactAccess(
        key, size_bytes, accessed_at, content_sha256, True, stored_at=stored_at, instead_of=instead_of
    )


SELECT_ROW = """
SELECT size_bytes, last_accessed_at, content_sha256, coalesce(stored_at, inserted_at)
FROM cache_artifacts WHERE key = ?
"""

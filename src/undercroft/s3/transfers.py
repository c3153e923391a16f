"""The service of transfers: what is to be moved to or from the object store, as rows."""

import apsw
import structlog
import uuid_utils

from undercroft.buffers import SQLiteBuffer, Ticket
from undercroft.buffers.s3_transfers import (
    S3TransfersState,
    TransferDelete,
    TransferEvent,
    TransferInsert,
    TransferType,
)
from undercroft.clock import now_us
from undercroft.database import Database
from undercroft.errors import UndercroftError

log = structlog.get_logger(__name__)

Transfers = SQLiteBuffer[S3TransfersState, TransferEvent]


class S3Transfers:
    """Queues transfers and answers which are pending. Transfers survive the process."""

    def __init__(self, database: Database, buffer: Transfers) -> None:
        self._database = database
        self._buffer = buffer
        self._counts: dict[str, int] = {}
        self._count_failed = False

    async def enqueue_upload(self, key: str) -> Ticket:
        """Queues the artifact under `key` for upload, once however often it is asked for.

        Durable when `committed(ticket)` returns. Raises `BufferFullError`.
        """
        return await self._enqueue("upload", key)

    async def enqueue_download(self, key: str) -> Ticket:
        """The same the other way round."""
        return await self._enqueue("download", key)

    async def _enqueue(self, transfer_type: TransferType, key: str) -> Ticket:
        account, project, kind = key.split("/", 3)[:3]
        identifier = str(uuid_utils.uuid7())
        return await self._buffer.enqueue(
            TransferInsert(identifier, transfer_type, account, project, kind, key, now_us())
        )

    async def committed(self, ticket: Ticket) -> None:
        """Waits for the commit of a queued transfer."""
        await self._buffer.committed(ticket)

    async def pending(self, transfer_type: TransferType, limit: int) -> list[TransferInsert]:
        """At most `limit` transfers nobody works on, in the order of their arrival.

        What was queued but not committed yet is committed first.
        """
        await self._buffer.flush()

        def select(connection: apsw.Connection) -> list[TransferInsert]:
            return [TransferInsert(*row) for row in connection.execute(PENDING, (transfer_type, limit))]

        return await self._database.read(select)

    async def count(self) -> dict[str, int]:
        """How many rows there are of each type, claimed or not; only what is committed.

        While the database cannot answer, what it said last: this figure must not take all others of
        a scrape with it.
        """

        def select(connection: apsw.Connection) -> dict[str, int]:
            return dict(connection.execute("SELECT type, count(*) FROM s3_transfers GROUP BY type"))

        try:
            self._counts = await self._database.read(select)
        except (apsw.Error, UndercroftError) as error:
            if not self._count_failed:  # once, not at every scrape
                log.warning("transfers_not_counted", error=str(error))
            self._count_failed = True
        else:
            self._count_failed = False
        return self._counts

    async def delete(self, identifiers: list[str]) -> None:
        """Removes transfers by id; ids that are not there do no harm."""
        for identifier in identifiers:
            await self._buffer.enqueue(TransferDelete(identifier))

    async def flush(self) -> None:
        """Commits what is pending."""
        await self._buffer.flush()


PENDING = """
SELECT id, type, account_handle, project_handle, artifact_type, key, inserted_at
FROM s3_transfers WHERE type = ? AND claimed_at IS NULL ORDER BY id LIMIT ?
"""

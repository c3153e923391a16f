"""The service of transfers: what is to be moved to or from the object store, as rows."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Literal, TypeVar

import apsw
import msgspec
import structlog
import uuid_utils

from undercroft.buffers import SQLiteBuffer, Ticket
from undercroft.buffers.s3_transfers import (
    INSERTS,
    S3TransfersState,
    TransferDelete,
    TransferEvent,
    TransferInsert,
    TransferType,
)
from undercroft.clock import now_us
from undercroft.database import Database
from undercroft.database.connection import transaction
from undercroft.database.insisting import insisting
from undercroft.errors import (
    BufferFullError,
    CommitTimeoutError,
    UndercroftError,
)
from undercroft.s3.transfer_statements import (
    CLAIM,
    COUNT,
    DROP_IF_QUEUED_AGAIN,
    FAIL,
    HURRY,
    IS_QUEUED,
    LIST_OTHERS,
    LIST_PARKED,
    NEXT_ATTEMPT,
    OUTDATES,
    PENDING,
    READY,
    RELEASE,
    RETRY_PARKED,
    SELECT_CLAIMED,
    WAKE,
    WAKE_ASTRAY,
)
from undercroft.s3.wrong_objects import WrongObjects
from undercroft.telemetry import events
from undercroft.telemetry.events import Events, Measurements, Metadata

log = structlog.get_logger(__name__)

Transfers = SQLiteBuffer[S3TransfersState, TransferEvent]

T = TypeVar("T")

NOT_WRITTEN = (apsw.Error, BufferFullError, CommitTimeoutError)
"""What is raised when a row cannot be written now: another process has the lock, the disk is full."""

# Rows changed in one transaction, where there may be hundreds of thousands: flushes get their turn between.
SLICE_ROWS = 1_000

# Rows of one key that may be ready at once: one of each type.
TYPES = 3


class Transfer(msgspec.Struct, frozen=True):
    """A row that was claimed. `attempts` counts earlier failures."""

    id: str
    type: TransferType
    key: str
    attempts: int


class ListedTransfer(msgspec.Struct, frozen=True):
    """A row as a person asks for it. Times in microseconds since the epoch; `next_attempt_at` 0: at once."""

    id: str
    type: TransferType
    key: str
    state: Literal["waiting", "in work", "parked"]
    attempts: int
    inserted_at: int
    next_attempt_at: int
    last_error: str | None


class S3Transfers:
    """Queues transfers, hands them out to be worked on, and keeps what failed. They survive the process.

    A row is claimed while it is in work, so that what is queued meanwhile for the same artifact is a
    row of its own. It goes when the work is done, or back with the time of its next attempt.
    """

    def __init__(self, database: Database, buffer: Transfers, telemetry: Events) -> None:
        self._database = database
        self._buffer = buffer
        self._counts: dict[str, int] = {}
        self._count_failed = False
        self.parked = 0
        """Rows that wait for `retry_parked`, as of the last `count`."""
        self.wrong_objects = WrongObjects()
        """What reading through found out for the uploads to come, and they for it."""
        self.committed_news = asyncio.Event()
        """Set when rows were committed; the worker clears it before it asks."""
        telemetry.attach(events.FLUSH, self._on_flush)

    def _on_flush(self, _measurements: Measurements, metadata: Metadata) -> None:
        if metadata["operation"] == INSERTS:
            self.committed_news.set()

    # --- queueing ---------------------------------------------------------------------------------

    async def enqueue_upload(self, key: str) -> Ticket:
        """Queues the artifact under `key` for upload, once however often it is asked for.

        Durable when `committed(ticket)` returns. Raises `BufferFullError`.
        """
        await self._buffer.wait_for_room()
        return self.enqueue_upload_nowait(key)

    async def enqueue_download(self, key: str) -> Ticket:
        """The same the other way round."""
        return await self._buffer.enqueue(_insert("download", key))

    async def enqueue_delete(self, key: str) -> Ticket:
        """Queues the object of an artifact that was deleted here to be deleted there."""
        return await self._buffer.enqueue(_insert("delete", key))

    async def wait_for_room(self) -> None:
        """Like `SQLiteBuffer.wait_for_room`, for who will call `enqueue_upload_nowait`."""
        await self._buffer.wait_for_room()

    def enqueue_upload_nowait(self, key: str) -> Ticket:
        """Like `enqueue_upload`, for an artifact that is published: it cannot be refused any more.

        A delete that waits, maybe for hours after it failed, would hide the new object and then remove it.
        It goes: the upload leaves nothing of what was there before. One in work is over before the upload.
        """
        if self.is_queued("delete", key):
            self._buffer.enqueue_nowait(TransferDelete("", key), past_bound=True)
        return self._buffer.enqueue_nowait(_insert("upload", key), past_bound=True)

    async def committed(self, ticket: Ticket) -> None:
        """Waits for the commit of a queued transfer."""
        await self._buffer.committed(ticket)

    def ticket_of_upload(self, key: str) -> Ticket | None:
        """The commit of an upload that was queued for the key; None when there is none to come."""
        return self._buffer.ticket_of(("upload", key))

    async def flush(self) -> None:
        """Commits what is pending."""
        await self._buffer.flush()

    # --- asking -----------------------------------------------------------------------------------

    def is_queued(self, transfer_type: TransferType, key: str) -> bool:
        """Whether such a transfer waits or is in work. One point query."""
        if self._buffer.pending((transfer_type, key)) is not None:
            return True
        return self._database.find(IS_QUEUED, key, transfer_type) is not None

    def outdates(self, key: str) -> bool:
        """Whether an upload or a delete of the key waits or is in work: what the store has may be old.

        One point query.
        """
        kinds: tuple[TransferType, ...] = ("upload", "delete")
        if any(self._buffer.pending((kind, key)) is not None for kind in kinds):
            return True
        return self._database.find(OUTDATES, key) is not None

    async def pending(self, transfer_type: TransferType, limit: int) -> list[TransferInsert]:
        """At most `limit` transfers nobody works on, in the order of their arrival.

        What was queued but not committed yet is committed first.
        """
        await self._buffer.flush()

        values = (transfer_type, limit)
        return await self._database.read(
            lambda c: [TransferInsert(*row) for row in c.execute(PENDING, values)]
        )

    async def next_attempt_at(self) -> int | None:
        """When the next row becomes due that waits after a failure (microseconds); None if none does."""
        earliest: int | None = await self._database.read(lambda c: c.execute(NEXT_ATTEMPT).get)
        return earliest

    async def count(self) -> dict[str, int]:
        """How many rows there are of each type, claimed or not, and in `parked` how many of them are.

        Only what is committed. While the database cannot answer, what it said last: this figure must not
        take all others of a scrape with it.
        """
        try:
            counts = await self._database.read(lambda c: list(c.execute(COUNT)))
        except (apsw.Error, UndercroftError) as error:
            if not self._count_failed:  # once, not at every scrape
                log.warning("transfers_not_counted", error=str(error))
            self._count_failed = True
        else:
            self._count_failed = False
            self._counts = {kind: total for kind, total, _ in counts}
            self.parked = sum(parked for *_, parked in counts)
        return self._counts

    # --- working ----------------------------------------------------------------------------------

    async def claim(
        self, limit: int, kept: int = 0, *, longest_delay_us: int = 86_400_000_000
    ) -> list[Transfer]:
        """Takes at most `limit` rows that are due into work: downloads first, then in the order of arrival.

        `kept` of them are no downloads, if there are so many others. At most one row per key is in work at
        any time. What was queued before is committed first. A row that would wait longer than
        `longest_delay_us` got its time from a clock that was set back since: it is due. Raises one of
        `NOT_WRITTEN`.
        """
        await self._buffer.flush()
        return await self._database.write(
            lambda connection: _claim(connection, limit, kept, longest_delay_us)
        )

    async def done(self, transfer: Transfer) -> None:
        """The row is resolved; it goes with the next flush. Raises `BufferFullError`."""
        await self._buffer.enqueue(TransferDelete(transfer.id))

    async def failed(self, transfer: Transfer, error: str, *, delay_us: int, park: bool) -> None:
        """Gives the row back, to be tried again after `delay_us`, or parked until `retry_parked`."""
        await self._database.write(lambda connection: _fail(connection, transfer, error, delay_us, park))

    async def release(self, transfers: Sequence[Transfer]) -> None:
        """Gives rows back as they were: nobody tried them to the end."""
        await self._database.write(lambda connection: _release(connection, transfers))

    async def release_all(self) -> int:
        """Gives back what a dead process had in work; answers how many rows."""

        def release(connection: apsw.Connection) -> int:
            claimed = [Transfer(*row) for row in connection.execute(SELECT_CLAIMED)]
            _release(connection, claimed)
            return len(claimed)

        return await self._database.write(release)

    async def hurry(self) -> int:
        """Lets rows that wait after a failure be tried at once: the store is back. Answers how many."""
        return await _in_slices(self._database, HURRY)

    async def retry_parked(self) -> int:
        """Gives every parked row new attempts; answers how many. Raises like the function."""
        return await retry_parked(self._database)

    async def delete(self, identifiers: list[str]) -> None:
        """Removes transfers by id; ids that are not there do no harm."""
        for identifier in identifiers:
            await self._buffer.enqueue(TransferDelete(identifier))


# --- for a process of its own, beside the node or without it ----------------------------------------


async def retry_parked(database: Database) -> int:
    """Gives every parked row new attempts; answers how many.

    Raises `DatabaseLockedError` when another process does not let go of the database,
    `DataDirectoryError` when it cannot be written.
    """
    return await insisting(database, lambda: _in_slices(database, RETRY_PARKED))


async def listed(database: Database) -> AsyncGenerator[list[ListedTransfer], None]:
    """All committed rows, page by page: what is parked first, then in the order of arrival.

    Raises like `retry_parked`.
    """
    for sql in (LIST_PARKED, LIST_OTHERS):
        after = ""
        while page := await insisting(database, partial(_page, database, sql, after)):
            yield page
            after = page[-1].id


async def _page(database: Database, sql: str, after: str) -> list[ListedTransfer]:
    values = (after, SLICE_ROWS)
    return await database.read(lambda c: [ListedTransfer(*row) for row in c.execute(sql, values)])


async def _in_slices(database: Database, sql: str) -> int:
    """Runs a statement that changes at most `SLICE_ROWS` rows until it finds fewer; answers how many."""
    total, changed = 0, SLICE_ROWS
    while changed == SLICE_ROWS:
        changed = await database.write(lambda connection: _changed(connection, sql))
        total += changed
    return total


# --- in the thread of the database ------------------------------------------------------------------


def _insert(transfer_type: TransferType, key: str) -> TransferInsert:
    account, project, kind = key.split("/", 3)[:3]
    identifier = str(uuid_utils.uuid7())
    return TransferInsert(identifier, transfer_type, account, project, kind, key, now_us())


def _claim(connection: apsw.Connection, limit: int, kept: int, longest_delay_us: int) -> list[Transfer]:
    now = now_us()
    with transaction(connection):
        connection.execute(WAKE, (now, SLICE_ROWS))
        connection.execute(WAKE_ASTRAY, (now + longest_delay_us, SLICE_ROWS))
        downloads, others = (_ready(connection, kind, limit * TYPES) for kind in (0, 1))
        chosen: dict[str, Transfer] = {}
        for rows, most in ((others, kept), (downloads, limit), (others, limit)):
            for row in rows:
                # Not two of one key at once: what is not first of its key waits for a later claim.
                if len(chosen) < most:
                    chosen.setdefault(row.key, row)
        due = list(chosen.values())
        for transfer in due:
            connection.execute(CLAIM, (now, transfer.id))
    return due


def _ready(connection: apsw.Connection, kind: int, limit: int) -> list[Transfer]:
    return [Transfer(*row) for row in connection.execute(READY, (kind, limit))]


def _fail(connection: apsw.Connection, transfer: Transfer, error: str, delay_us: int, park: bool) -> None:
    now = now_us()
    with transaction(connection):
        _drop_if_queued_again(connection, transfer)
        times = now + delay_us, now if park else None
        connection.execute(FAIL, (transfer.attempts + 1, *times, error, transfer.id))


def _release(connection: apsw.Connection, transfers: Sequence[Transfer]) -> None:
    with transaction(connection):
        for transfer in transfers:
            _drop_if_queued_again(connection, transfer)
            connection.execute(RELEASE, (transfer.id,))


def _drop_if_queued_again(connection: apsw.Connection, transfer: Transfer) -> None:
    """The newer row says the same, and the two could not both be unclaimed; or it is an upload.

    Then a delete would remove the new object as soon as it is tried again.
    """
    connection.execute(DROP_IF_QUEUED_AGAIN, (transfer.id, transfer.type, transfer.key))


def _changed(connection: apsw.Connection, sql: str) -> int:
    with transaction(connection):
        connection.execute(sql, (SLICE_ROWS,))
        return connection.changes()

"""The service of artifacts: bytes under a key, on disk, with a row that says what they must be."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal, NamedTuple

import structlog

from undercroft.buffers import SQLiteBuffer, Ticket
from undercroft.buffers.cache_artifacts import (
    ArtifactAccess,
    ArtifactDelete,
    ArtifactEvent,
    CacheArtifactsState,
)
from undercroft.clock import now_us
from undercroft.database import Database
from undercroft.errors import CapacityError
from undercroft.s3.transfers import S3Transfers
from undercroft.storage.capacity import Capacity, Reservation
from undercroft.storage.disk import Disk, OpenFile, sha256_of
from undercroft.storage.disk_threads import DiskThreads
from undercroft.storage.healing import Healing
from undercroft.storage.key_locks import KeyLocks
from undercroft.storage.open_artifact import OpenArtifact
from undercroft.storage.upload import (
    UNKNOWN_ORIGIN,
    Arrival,
    Origin,
    Stored,
    Upload,
    nobody,
    told_of_no_room,
)
from undercroft.storage.verified_files import VerifiedFiles

log = structlog.get_logger(__name__)

ArtifactRows = SQLiteBuffer[CacheArtifactsState, ArtifactEvent]

# The first time a file of at most this size is served, or stored again, after a start its digest is
# checked. A larger one would keep whoever comes first waiting for seconds; it is checked by its size.
VERIFY_MAX_BYTES = 64 << 20


class Taken(NamedTuple):
    """What became of an upload, and the commits of its row and of its transfer, if they are to come."""

    stored: Stored
    row: Ticket | None
    upload: Ticket | None


async def _no_eviction(_size: int) -> bool:
    return False


class CacheArtifacts:
    """Stores, finds and deletes artifacts, and keeps track of who is used.

    A file is served only if it is what its row says. A row follows its file within the same turn of
    the event loop, so that readers never see one contradict the other.
    """

    def __init__(
        self,
        database: Database,
        buffer: ArtifactRows,
        disk: Disk,
        capacity: Capacity,
        ack: Literal["committed", "buffered"],
        *,
        transfers: S3Transfers | None = None,
    ) -> None:
        """With `transfers` every artifact that is stored is queued for upload to the object store."""
        self._database = database
        self._buffer = buffer
        self._disk = disk
        self._capacity = capacity
        self._transfers = transfers
        self.make_room: Callable[[int], Awaitable[bool]] = _no_eviction
        """Asked for so many bytes when there is no room; answers whether to try again. Eviction sets it."""
        self.on_stored: Callable[[str], None] = nobody
        """Told the key of each artifact that was stored."""
        self.is_doomed: Callable[[str], bool] = lambda _key: False
        """Whether what is under a key is about to go, so that nobody may rely on it. Cleaning sets it."""
        self._waits = ack == "committed"
        self.threads = DiskThreads()
        self._verified = VerifiedFiles[ArtifactAccess]()
        self._healing = Healing(disk, self._verified)
        # A new file under an old name, while it is being renamed: its inode and the row to come.
        self._replacing: dict[str, tuple[int, ArtifactAccess]] = {}
        self.locks = KeyLocks()

    def open(self) -> None:
        """Reads how much there is. Blocks."""
        self._capacity.books.open(self._total_bytes)

    def _total_bytes(self) -> int:
        row = self._database.find("SELECT size_bytes FROM artifact_totals")
        return 0 if row is None else int(row[0])

    def close(self) -> None:
        """Ends the disk's threads after what they are doing. Idempotent."""
        self.threads.close()

    # --- rows -------------------------------------------------------------------------------------

    def find(self, key: str) -> ArtifactAccess | None:
        """What is known of the artifact, committed or not. One point query."""
        event = self._buffer.pending(key)
        if event is not None:
            return None if isinstance(event, ArtifactDelete) else event
        row = self._database.find(SELECT_ROW, key)
        return None if row is None else ArtifactAccess(key, *row)

    def is_here(self, key: str) -> bool:
        """Whether there is a file with a row of its size. One point query."""
        row = self.find(key)
        return row is not None and self._disk.size(key) == row.size_bytes

    def track_access(self, row: ArtifactAccess) -> None:
        """Records that the artifact was used now."""
        self._buffer.enqueue_nowait(ArtifactAccess(row.key, row.size_bytes, now_us()))

    async def evict(self, key: str, *, unless_used_after: int | None = None) -> int | None:
        """Deletes the file and row, not the object in the object store; answers the bytes freed.

        None: it was used after `unless_used_after` (microseconds since the epoch) or has no row any more,
        and nothing was done.
        """
        async with self.alone(key):
            row = self.find(key)
            if unless_used_after is not None and (row is None or row.accessed_at > unless_used_after):
                return None
            freed = await self.threads.run(self._disk.delete, key)
            if row is not None:
                await self.forget(row)
        return freed or 0

    async def delete(self, key: str) -> None:
        """Deletes the artifact, in the object store, too, which may take place later. Idempotent."""
        ticket = None
        if self._transfers is not None:
            # Before the file: from here on nobody fetches it from there again.
            ticket = await self._transfers.enqueue_delete(key)
        await self.evict(key)
        if ticket is not None and self._transfers is not None and self._waits:
            await self._transfers.committed(ticket)

    async def forget(self, row: ArtifactAccess) -> None:
        """Deletes the row of a file that is gone. The caller is `alone` with the key."""
        self._verified.forget(row.key)
        await self._buffer.enqueue(ArtifactDelete(row.key))
        self._capacity.books.forgot(row.size_bytes)

    async def flush(self) -> None:
        """Commits what is pending."""
        await self._buffer.flush()
        if self._transfers is not None:
            await self._transfers.flush()

    # --- reading ----------------------------------------------------------------------------------

    async def read(self, key: str, surely: bool = False) -> OpenArtifact | None:
        """Opens an artifact if its bytes are whole, and records the access; None is a miss.

        A file that contradicts its row is moved into quarantine. Raises OSError when the disk fails.
        `surely`: the digest of a file of any size is checked, however long that takes.
        """
        file = self._disk.open(key)
        if file is None:
            return None
        try:
            row = self._verified.row(key, file, surely=surely)
            if row is not None:
                self.track_access(row)
            else:
                row = await self._verify(key, file, surely)
            if row is not None:
                return OpenArtifact(file.descriptor, file.size, row.content_sha256)
        except BaseException:
            os.close(file.descriptor)
            raise
        os.close(file.descriptor)
        return None

    async def _verify(self, key: str, file: OpenFile, surely: bool) -> ArtifactAccess | None:
        """The row of the file if they agree, and records the access.

        A file without a row is not served: nobody vouches for it.
        """
        row = self._row_of(key, file.inode)
        if row is None:
            return None
        whole = row.size_bytes == file.size
        surely = surely or file.size <= VERIFY_MAX_BYTES
        if whole and row.content_sha256 is not None and surely:
            whole = await self.threads.run(sha256_of, file) == row.content_sha256
        if not whole:
            await self.quarantine(row, file)
            return None
        if self._is_current(row):
            self._verified.add(file, row, surely=surely)
            self.track_access(row)
        return row

    def _is_current(self, row: ArtifactAccess) -> bool:
        """Whether the row is still what is known: while a digest was computed it may have been replaced.

        An access recorded with an old size would make the new row contradict its file.
        """
        now = self.find(row.key)
        said = row.size_bytes, row.content_sha256
        return now is not None and (now.size_bytes, now.content_sha256) == said

    def _row_of(self, key: str, inode: int) -> ArtifactAccess | None:
        replacing = self._replacing.get(key)
        if replacing is not None and replacing[0] == inode:
            return replacing[1]
        return self.find(key)

    async def quarantine(self, row: ArtifactAccess, file: OpenFile) -> None:
        """Puts a file that contradicts its row out of reach, unless it was replaced meanwhile."""
        log.error("artifact_damaged", key=row.key, size=file.size, expected_size=row.size_bytes)
        async with self.alone(row.key):
            if await self.threads.run(self._disk.quarantine, row.key, file.inode):
                await self.forget(row)

    # --- storing ----------------------------------------------------------------------------------

    async def store(
        self,
        key: str,
        chunks: AsyncIterator[bytes],
        *,
        declared_size: int | None,
        replace: bool,
        expected_sha256: str | None = None,
        origin: Origin = UNKNOWN_ORIGIN,
    ) -> Stored:
        """Stores an artifact of unknown or `declared_size` bytes; durable by the rule of `ack` on return.

        Without `replace` an artifact that is there and whole stays. Raises what `chunks` raises,
        `TooLargeError`, `CapacityError`, `DigestMismatchError`, the errors of a buffer, OSError; then
        nothing is stored, but for `CommitTimeoutError`: the artifact is there, its row may be late.
        """
        arrival = Arrival(key, self.new_upload(), replace, expected_sha256, origin)
        return await self.acknowledged(await self.take_in(arrival, chunks, declared_size))

    async def settled(self, key: str) -> None:
        """Returns when what is known of the key is acknowledged: who is told "it is there" may rely on it.

        Raises like `SQLiteBuffer.committed`.
        """
        await self.acknowledged(self._taken_before(key))

    def _taken_before(self, key: str) -> Taken:
        upload = self._transfers.ticket_of_upload(key) if self._transfers is not None else None
        return Taken(Stored.EXISTS, self._buffer.ticket_of(key), upload)

    async def acknowledged(self, taken: Taken) -> Stored:
        """Returns when it is durable by the rule of `ack`; raises like `SQLiteBuffer.committed`."""
        if self._waits and taken.row is not None:
            await self._buffer.committed(taken.row)
        if self._waits and taken.upload is not None and self._transfers is not None:
            await self._transfers.committed(taken.upload)
        return taken.stored

    def new_upload(self) -> Upload:
        """Something to receive an artifact in, for `take_in`."""
        return Upload(self._disk)

    async def take_in(self, arrival: Arrival, chunks: AsyncIterator[bytes], size: int | None) -> Taken:
        """Receives and publishes; raises like `store`. Its row is visible, but may not be committed."""
        upload = arrival.upload
        with Reservation(self._capacity) as room:
            try:
                with told_of_no_room(upload):
                    await self.grow(room, size or 0)
                    await self.receive(arrival, chunks, room)
                    return await self.publish(arrival, room)
            finally:
                if upload.on_disk:
                    # To free a large file takes its time.
                    await self.threads.run(upload.discard)

    async def grow(self, room: Reservation, size: int) -> None:
        """Holds so many bytes more, after an eviction if need be."""
        while True:
            try:
                room.grow(size)
            except CapacityError:
                # Others may take what was freed, so this may have to ask more than once.
                if not await self.make_room(size):
                    raise
            else:
                return

    async def receive(self, arrival: Arrival, chunks: AsyncIterator[bytes], room: Reservation) -> None:
        """Takes the bytes in, each after there is room for it; some may wait in memory."""
        upload = arrival.upload
        async for chunk in chunks:
            spool_is_full = upload.add(chunk)
            if upload.size > room.size:
                await self.grow(room, upload.size - room.size)
            if spool_is_full:
                room.wrote(await self.threads.run(upload.write_out))
                arrival.on_written()

    async def wait_for_room(self) -> None:
        """Returns when an artifact's rows would be accepted; raises like `SQLiteBuffer.wait_for_room`."""
        await self._buffer.wait_for_room()
        if self._transfers is not None:
            await self._transfers.wait_for_room()

    async def publish(self, arrival: Arrival, room: Reservation) -> Taken:
        """Gives what was received in `room` its name and its row; the caller discards what is left."""
        key, upload = arrival.key, arrival.upload
        async with self.alone(key):
            # Before a file is touched: a row that found no room would cost the artifact it replaces.
            await self.wait_for_room()
            arrival.check()
            arrival.replace = arrival.replace or self.is_doomed(key)
            old = self.find(key)
            try:
                row = await self.threads.run(self._finish, arrival, old)
                if row is None:
                    # Whoever stored it may still be waiting for its commit.
                    return self._taken_before(key)
                tickets = self._record(row, upload=not arrival.from_object_store)
            except BaseException:
                # Without its row a file is nothing: not even one whose request was cancelled stays.
                if upload.published:
                    await self.threads.run(self._disk.delete, key)
                raise
            finally:
                self._replacing.pop(key, None)
            room.published(row.size_bytes, replaced=old.size_bytes if old else 0)
        return Taken(Stored.REPLACED if old else Stored.CREATED, *tickets)

    def _record(self, row: ArtifactAccess, *, upload: bool) -> tuple[Ticket, Ticket | None]:
        """Tells the tables of a file that has its final name, all in one turn of the event loop."""
        self._verified.forget(row.key)
        ticket = self._buffer.enqueue_nowait(row, past_bound=True)
        self.on_stored(row.key)
        if not upload or self._transfers is None:
            return ticket, None
        return ticket, self._transfers.enqueue_upload_nowait(row.key)

    def _finish(self, arrival: Arrival, old: ArtifactAccess | None) -> ArtifactAccess | None:
        """Gives the upload its final name; answers its row, None when another artifact keeps the name."""
        key, upload = arrival.key, arrival.upload
        file, inode = upload.finish(arrival.expected_sha256)
        row = ArtifactAccess(key, file.size, now_us(), file.digest(), True, *arrival.origin)
        if old is not None:
            # Readers who find the new file before the new row is known must not hold it against the old one.
            self._replacing[key] = (inode, row)
        if not arrival.replace:
            upload.published = self._disk.publish_new(file, key)
            if upload.published:
                upload.discard()
                return row
            if old is not None and self._healing.stays(old, file, hash_up_to=VERIFY_MAX_BYTES):
                return None
        # A file without a row, or damaged, is healed like one that is to be replaced.
        self._disk.publish_over(file, key)
        upload.published = True
        return row

    async def adopt(self, row: ArtifactAccess, *, upload: bool = True) -> None:
        """Takes a whole file that lies under its key without a row. The caller is `alone` with the key."""
        await self._buffer.wait_for_room()
        if upload and self._transfers is not None:
            await self._transfers.wait_for_room()
        self._record(row, upload=upload)
        self._capacity.books.published(row.size_bytes, replaced=0)

    # --- order ------------------------------------------------------------------------------------

    def alone(self, key: str) -> asyncio.Lock:
        """Lets one task at a time change what is under a key. The lock lives as long as somebody has it."""
        return self.locks.of(key)


SELECT_ROW = "SELECT size_bytes, last_accessed_at, content_sha256 FROM cache_artifacts WHERE key = ?"

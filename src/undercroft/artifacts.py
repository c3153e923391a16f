"""The service of artifacts: bytes under a key, on disk, with a row that says what they must be."""

import asyncio
import enum
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, NamedTuple, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import apsw
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
from undercroft.storage.capacity import Capacity, Reservation
from undercroft.storage.disk import Disk, OpenFile, is_full, sha256_of
from undercroft.storage.upload import Upload
from undercroft.storage.verified_files import VerifiedFiles

log = structlog.get_logger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

ArtifactRows = SQLiteBuffer[CacheArtifactsState, ArtifactEvent]

# Threads for what blocks on the disk. More would not make one disk faster.
DISK_THREADS = 4

# The first time a file of at most this size is served after a start its digest is checked. A larger
# one would keep its first reader waiting for seconds; it is checked by its size.
VERIFY_MAX_BYTES = 64 << 20


class Stored(enum.Enum):
    """What became of an upload."""

    CREATED = "created"
    REPLACED = "replaced"
    EXISTS = "exists"


class OpenArtifact(NamedTuple):
    """An artifact open for reading. Whoever has it closes the descriptor.

    `size` is in bytes, `content_sha256` 64 lowercase hex digits where it is known.
    """

    descriptor: int
    size: int
    content_sha256: str | None


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
    ) -> None:
        self._database = database
        self._buffer = buffer
        self._disk = disk
        self._capacity = capacity
        self._waits = ack == "committed"
        self._threads = ThreadPoolExecutor(DISK_THREADS, "disk")
        self._verified = VerifiedFiles[ArtifactAccess]()
        # A new file under an old name, while it is being renamed: its inode and the row to come.
        self._replacing: dict[str, tuple[int, ArtifactAccess]] = {}
        self._key_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def open(self) -> None:
        """Reads how much there is. Blocks."""
        row = self._database.find("SELECT size_bytes FROM artifact_totals")
        self._capacity.used = 0 if row is None else int(row[0])

    def close(self) -> None:
        """Ends the disk's threads after what they are doing. Idempotent."""
        self._threads.shutdown()

    # --- rows -------------------------------------------------------------------------------------

    def find(self, key: str) -> ArtifactAccess | None:
        """What is known of the artifact, committed or not. One point query."""
        event = self._buffer.pending(key)
        if event is not None:
            return None if isinstance(event, ArtifactDelete) else event
        row = self._database.find(SELECT_ROW, key)
        return None if row is None else ArtifactAccess(key, *row)

    def track_access(self, row: ArtifactAccess) -> None:
        """Records that the artifact was used now."""
        self._buffer.enqueue_nowait(ArtifactAccess(row.key, row.size_bytes, now_us()))

    async def oldest(self, limit: int) -> list[ArtifactAccess]:
        """The `limit` artifacts whose last access is longest ago; accesses still pending are counted."""
        await self._buffer.flush()

        def select(connection: apsw.Connection) -> list[ArtifactAccess]:
            return [ArtifactAccess(*row) for row in connection.execute(SELECT_OLDEST, (limit,))]

        return await self._database.read(select)

    async def delete(self, keys: list[str]) -> int:
        """Deletes artifacts, file and row; answers the bytes freed. Keys that are not there do no harm."""
        freed = 0
        for key in keys:
            async with self._alone(key):
                row = self.find(key)
                size = await self._in_thread(self._disk.delete, key)
                freed += size or 0
                self._verified.forget(key)
                await self._buffer.enqueue(ArtifactDelete(key))
                self._capacity.used -= row.size_bytes if row else 0
        return freed

    async def flush(self) -> None:
        """Commits what is pending."""
        await self._buffer.flush()

    # --- reading ----------------------------------------------------------------------------------

    async def read(self, key: str) -> OpenArtifact | None:
        """Opens an artifact if its bytes are whole, and records the access; None is a miss.

        A file that contradicts its row is moved into quarantine. Raises OSError when the disk fails.
        """
        file = self._disk.open(key)
        if file is None:
            return None
        try:
            row = self._verified.row(key, file)
            if row is not None:
                self.track_access(row)
            else:
                row = await self._verify(key, file)
            if row is not None:
                return OpenArtifact(file.descriptor, file.size, row.content_sha256)
        except BaseException:
            os.close(file.descriptor)
            raise
        os.close(file.descriptor)
        return None

    async def _verify(self, key: str, file: OpenFile) -> ArtifactAccess | None:
        """The row of the file if they agree, and records the access.

        A file without a row is not served: nobody vouches for it.
        """
        row = self._row_of(key, file.inode)
        if row is None:
            return None
        whole = row.size_bytes == file.size
        if whole and row.content_sha256 is not None and file.size <= VERIFY_MAX_BYTES:
            whole = await self._in_thread(sha256_of, file) == row.content_sha256
        if not whole:
            await self._quarantine(row, file)
            return None
        if self._is_current(row):
            self._verified.add(file, row)
            self.track_access(row)
        return row

    def _is_current(self, row: ArtifactAccess) -> bool:
        """Whether the row is still what is known: while a digest was computed it may have been replaced.

        An access recorded with an old size would make the new row contradict its file.
        """
        now = self.find(row.key)
        return now is not None and (now.size_bytes, now.content_sha256) == (
            row.size_bytes,
            row.content_sha256,
        )

    def _row_of(self, key: str, inode: int) -> ArtifactAccess | None:
        replacing = self._replacing.get(key)
        if replacing is not None and replacing[0] == inode:
            return replacing[1]
        return self.find(key)

    async def _quarantine(self, row: ArtifactAccess, file: OpenFile) -> None:
        log.error("artifact_damaged", key=row.key, size=file.size, expected_size=row.size_bytes)
        async with self._alone(row.key):
            if await self._in_thread(self._disk.quarantine, row.key, file.inode):
                self._verified.forget(row.key)
                await self._buffer.enqueue(ArtifactDelete(row.key))
                self._capacity.used -= row.size_bytes

    # --- storing ----------------------------------------------------------------------------------

    async def store(
        self,
        key: str,
        chunks: AsyncIterator[bytes],
        *,
        declared_size: int | None,
        replace: bool,
        expected_sha256: str | None = None,
    ) -> Stored:
        """Stores an artifact of unknown or `declared_size` bytes; durable by the rule of `ack` on return.

        Without `replace` an artifact that is there and whole stays. Raises what `chunks` raises,
        `TooLargeError`, `CapacityError`, `DigestMismatchError`, the errors of a buffer, OSError; then
        nothing is stored, but for `CommitTimeoutError`: the artifact is there, its row may be late.
        """
        upload = Upload(self._disk)
        with self._capacity.reserve(declared_size or 0) as reservation:
            try:
                await self._receive(upload, chunks, reservation)
                stored, ticket = await self._publish(upload, key, reservation, replace, expected_sha256)
            except OSError as error:
                if is_full(error):
                    raise CapacityError(
                        f"no room on the disk for {upload.size} bytes now: {error}"
                    ) from error
                raise
            finally:
                if upload.on_disk:
                    # To free a large file takes its time.
                    await self._in_thread(upload.discard)
        if self._waits and ticket is not None:
            await self._buffer.committed(ticket)
        return stored

    async def settled(self, key: str) -> None:
        """Returns when what is known of the key is acknowledged: who is told "it is there" may rely on it.

        Raises like `SQLiteBuffer.committed`.
        """
        ticket = self._buffer.ticket_of(key)
        if self._waits and ticket is not None:
            await self._buffer.committed(ticket)

    async def _receive(self, upload: Upload, chunks: AsyncIterator[bytes], room: Reservation) -> None:
        async for chunk in chunks:
            spool_is_full = upload.add(chunk)
            if upload.size > room.size:
                room.grow(upload.size - room.size)
            if spool_is_full:
                room.wrote(await self._in_thread(upload.write_out))

    async def _publish(
        self, upload: Upload, key: str, room: Reservation, replace: bool, expected_sha256: str | None
    ) -> tuple[Stored, Ticket | None]:
        async with self._alone(key):
            # Before a file is touched: a row that found no room would cost the artifact it replaces.
            await self._buffer.wait_for_room()
            old = self.find(key)
            try:
                row = await self._in_thread(self._finish, upload, key, old, replace, expected_sha256)
                if row is None:
                    # Whoever stored it may still be waiting for its commit.
                    return Stored.EXISTS, self._buffer.ticket_of(key)
                ticket = self._buffer.enqueue_nowait(row, past_bound=True)
            except BaseException:
                # Without its row a file is nothing: not even one whose request was cancelled stays.
                if upload.published:
                    await self._in_thread(self._disk.delete, key)
                raise
            finally:
                self._replacing.pop(key, None)
            self._verified.forget(key)
            room.published(row.size_bytes, replaced=old.size_bytes if old else 0)
        return (Stored.REPLACED if old else Stored.CREATED), ticket

    def _finish(
        self,
        upload: Upload,
        key: str,
        old: ArtifactAccess | None,
        replace: bool,
        expected_sha256: str | None,
    ) -> ArtifactAccess | None:
        """Gives the upload its final name; answers its row, None when another artifact keeps the name."""
        file, inode = upload.finish(expected_sha256)
        row = ArtifactAccess(key, file.size, now_us(), file.digest(), stored=True)
        if old is not None:
            # Readers who find the new file before the new row is known must not hold it against the old one.
            self._replacing[key] = (inode, row)
        if not replace:
            upload.published = self._disk.publish_new(file, key)
            if upload.published:
                upload.discard()
                return row
            if old is not None and self._disk.size(key) == old.size_bytes:
                return None
        # A file without a row, or damaged, is healed like one that is to be replaced.
        self._disk.publish_over(file, key)
        upload.published = True
        return row

    # --- order ------------------------------------------------------------------------------------

    def _alone(self, key: str) -> asyncio.Lock:
        """Lets one task at a time change what is under a key. The lock lives as long as somebody has it."""
        lock = self._key_locks.get(key)
        if lock is None:
            lock = self._key_locks[key] = asyncio.Lock()
        return lock

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `function` in a thread of the disk's.

        Who is cancelled waits for it all the same: cleaning up under the thread's hands would close
        descriptors it still writes to.
        """
        call = partial(function, *args, **kwargs)
        job = asyncio.get_running_loop().run_in_executor(self._threads, call)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await asyncio.wait([job])
            raise


SELECT_ROW = "SELECT size_bytes, last_accessed_at, content_sha256 FROM cache_artifacts WHERE key = ?"

SELECT_OLDEST = """
SELECT key, size_bytes, last_accessed_at, content_sha256
FROM cache_artifacts ORDER BY last_accessed_at LIMIT ?
"""

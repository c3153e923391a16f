"""The service of artifacts: bytes under a key, on disk, with a row that says what they must be."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable

import structlog

from undercroft.artifact_rows import Ack, ArtifactBuffer, ArtifactRows, Taken, agrees, row_of_label
from undercroft.buffers import Ticket
from undercroft.buffers.cache_artifacts import ArtifactAccess
from undercroft.clock import now_us
from undercroft.database import Database
from undercroft.s3.transfers import S3Transfers
from undercroft.storage.capacity import Capacity, Reservation
from undercroft.storage.disk import Disk
from undercroft.storage.disk_threads import DiskThreads
from undercroft.storage.healing import Healing
from undercroft.storage.intake import Intake
from undercroft.storage.key_locks import KeyLocks
from undercroft.storage.label import Label, label_of
from undercroft.storage.open_artifact import OpenArtifact
from undercroft.storage.open_file import FoundFile, OpenFile, sha256_of
from undercroft.storage.proofs import Proofs
from undercroft.storage.upload import UNKNOWN_ORIGIN, Arrival, Origin, Stored, Upload, nobody, told_of_no_room
from undercroft.storage.verified_files import VerifiedFiles
from undercroft.storage.witnesses import Witness, Witnesses
from undercroft.supervisor import to_its_end

log = structlog.get_logger(__name__)

# The first time a file is served, or stored again, after a start its digest is checked; one of more than this
# would keep whoever comes first waiting for seconds: it is proven while it is served.
VERIFY_MAX_BYTES = 64 << 20


class CacheArtifacts:
    """Stores, finds and deletes artifacts, and keeps track of who is used.

    A file is served only if it is what its row says, or what it says itself: then its row was not written
    yet, or never will be, because the process that was to do it is another one, or was killed.
    """

    def __init__(
        self,
        database: Database,
        buffer: ArtifactBuffer,
        disk: Disk,
        capacity: Capacity,
        ack: Ack,
        *,
        transfers: S3Transfers | None = None,
    ) -> None:
        """With `transfers` every artifact that is stored is queued for upload to the object store."""
        self._rows = ArtifactRows(database, buffer, transfers, ack)
        self._disk = disk
        self._capacity = capacity
        self.on_stored: Callable[[str], None] = nobody
        """Told the key of each artifact that was stored."""
        self.is_doomed: Callable[[str], bool] = lambda _key: False
        """Whether what is under a key is about to go, so that nobody may rely on it. Cleaning sets it."""
        self.was_cleaned: Callable[[str, int], bool] = lambda _key, _stored_at: False
        """Whether what was stored under a key at that time was to go by a request since. Cleaning sets it."""
        self.threads = DiskThreads(small_on_loop=not disk.syncs)
        self.intake = Intake(self.threads)
        self._verified = VerifiedFiles[ArtifactAccess]()
        self._healing = Healing(disk, self._verified)
        self._proofs = Proofs(self.threads, self._verified, self.quarantine)
        # A new file under an old name, while it is being renamed: its inode and the row to come.
        self._replacing: dict[str, tuple[int, ArtifactAccess]] = {}
        self.locks = KeyLocks()

    def open(self) -> None:
        """Reads how much there is; again later, because commands may have deleted rows. Blocks."""
        self._rows.tell_total(self._capacity.books.open)

    def close(self) -> None:
        """Ends the disk's threads after what they are doing. Idempotent."""
        self.threads.close()

    # --- rows -------------------------------------------------------------------------------------

    def find(self, key: str) -> ArtifactAccess | None:
        """What is known of the artifact, committed or not. One point query."""
        return self._rows.find(key)

    def is_here(self, key: str) -> bool:
        """Whether there is a file of the size that its row or it itself says. One point query."""
        file = self._disk.look(key)
        if file is None:
            return False
        row = self.find(key)
        return (row is not None and row.size_bytes == file.size) or self._is_live(key, file.fitting_label)

    def is_newer(self, key: str, cutoff: int) -> bool:
        """Whether an artifact was stored after that time, by its row or by what its file says itself."""
        row = self.find(key)
        if row is not None and (row.stored_at is None or row.stored_at > cutoff):
            return True
        file = self._disk.look(key)
        label = None if file is None else file.fitting_label
        return label is not None and label.stored_at > cutoff

    def _is_live(self, key: str, label: Label | None) -> bool:
        """Whether a label counts: not if a request to clean its project came after it."""
        return label is not None and not self.was_cleaned(key, label.stored_at)

    async def evict(self, key: str, *, unless_used_after: int | None = None) -> int | None:
        """Deletes the file and row, not the object in the object store; answers the bytes freed.

        None: it was used after `unless_used_after` (microseconds since the epoch), or another process has
        just stored it anew; and it stays. 0 as well where another was first.
        """
        async with self.alone(key):
            row, freed = self.find(key), None
            if unless_used_after is None:
                freed = await self.threads.run(self._disk.delete, key)
            elif row is None:
                return 0
            elif row.accessed_at > unless_used_after:
                return None
            elif (file := await self.threads.run_for(0, self._disk.look, key)) is not None:
                if (label := file.fitting_label) and not agrees(row, label):
                    self.take_at_its_word(key, file)
                    return None
                # Never just the name: another process may give it to a new file from one moment to the next.
                freed = await self.threads.run_for(file.size, self._disk.delete_file, key, file.inode)
            if row is not None:
                await self.forget(row, removed=freed is not None)
        return freed or 0

    async def delete(self, key: str) -> None:
        """Deletes the artifact, in the object store, too, which may take place later. Idempotent."""
        # Before the file: from here on nobody fetches it from there again.
        await self._rows.queue_delete(key)
        # A stop in the middle would leave a row without a file.
        await to_its_end(self.evict(key))
        # And after it, as that one leaves the object alone if its turn came while the file was there.
        await self._rows.deleted(await self._rows.queue_delete(key))

    async def forget(self, row: ArtifactAccess, *, removed: bool) -> None:
        """Deletes the row of a file that is gone; `removed`: by the caller, who is `alone` with the key."""
        self._verified.forget(row.key)
        await self._rows.forget(row)
        self._capacity.books.forgot(row.size_bytes, removed=removed)

    async def flush(self) -> None:
        """Commits what is pending."""
        await self._rows.flush()

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
                self._rows.track_access(row)
            else:
                row = await self._verify(key, file, surely)
            if row is not None:
                reached = self._proofs.reached(file, row) if file.size > VERIFY_MAX_BYTES else None
                return OpenArtifact(file.descriptor, file.size, row.content_sha256, reached)
        except BaseException:
            os.close(file.descriptor)
            raise
        os.close(file.descriptor)
        return None

    def read_again(self, key: str) -> OpenArtifact | None:
        """Like `read`, at once, for a file that was verified; None says nothing."""
        file = self._disk.open(key)
        if file is None:
            return None
        try:
            row = self._verified.row(key, file)
            if row is not None and file.size <= VERIFY_MAX_BYTES:
                self._verified.update(row, self._rows.track_repeated_access(row))
                return OpenArtifact(file.descriptor, file.size, row.content_sha256)
        except BaseException:
            os.close(file.descriptor)
            raise
        os.close(file.descriptor)
        return None

    async def _verify(self, key: str, file: OpenFile, surely: bool) -> ArtifactAccess | None:
        """The row of the file, or what is to be its row, if it is whole; and records the access.

        A file without a row and a label is not served: nobody vouches for it.
        """
        row, label = self._row_of(key, file.inode), label_of(file.descriptor)
        said = Witnesses(row, label, file.size)
        surely = surely or file.size <= VERIFY_MAX_BYTES or said.must_be_proven
        if surely and said.can_be_proven:
            witness = said.by_digest(await self.threads.run_for(file.size, sha256_of, file))
        else:
            witness = said.by_size(self._disk.boot)
        if witness is Witness.CONTRADICTED:
            await self.quarantine(key, row, file)
        if witness is Witness.LABEL and label is not None and not agrees(row, label):
            return self._served_unknown(key, file, label, surely)
        if row is None or witness not in (Witness.ROW, Witness.LABEL):
            return None
        if self._rows.is_current(row):
            self._verified.add(file, row, surely=surely)
            self._rows.track_access(row)
        return row

    def _served_unknown(self, key: str, file: OpenFile, label: Label, surely: bool) -> ArtifactAccess | None:
        """What a file that no row knows is served as; None after a request to clean its project."""
        if not self._is_live(key, label):
            return None
        # Whoever has the lock is about to say so himself, or to take the file away again.
        row = row_of_label(key, label, None, now_us())
        if not self.locks.is_taken(key) and self.take_at_its_word(key, FoundFile.of(file, label), surely):
            self._rows.track_access(row)
        return row

    def take_at_its_word(self, key: str, file: FoundFile, proven: bool | None = None) -> bool:
        """Makes the row of a file what its label says, if it has its name still. In one turn of the loop.

        A process that publishes a file renames it before it commits its row. So if the file has its name
        after the row was read, no row of a newer file was read; and one written since is not replaced.
        `proven` by its bytes or by its size, None if by neither. Answers whether it was needed.
        """
        row, label = self.find(key), file.label
        if label is None or not self._disk.has_name(key, file.inode):
            return False
        known = row
        if row is None or not agrees(row, label):
            used_at = max(label.stored_at, known.accessed_at if known is not None else 0)
            row = row_of_label(key, label, known, used_at)
            self._record(row, upload=True)
            replaced = known.size_bytes if known is not None else 0
            self._capacity.books.published(row.size_bytes, replaced)
            log.debug("artifact_known_by_its_file", key=key, size=file.size, had_row=known is not None)
        if proven is not None:
            self._verified.add(file, row, surely=proven)
        return row is not known

    def _row_of(self, key: str, inode: int) -> ArtifactAccess | None:
        coming, row = self._replacing.get(key, (None, None))
        return row if coming == inode else self.find(key)

    async def quarantine(self, key: str, row: ArtifactAccess | None, file: OpenFile) -> None:
        """Puts a file that contradicts what is said of it out of reach, unless it was replaced meanwhile."""
        log.error("artifact_damaged", key=key, size=file.size, expected_size=row and row.size_bytes)
        async with self.alone(key):
            if await self.threads.run(self._disk.quarantine, key, file.inode) and row is not None:
                await self.forget(row, removed=True)

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
        await self._rows.acknowledged(self._rows.before(key))

    async def acknowledged(self, taken: Taken) -> Stored:
        """Returns when it is durable by the rule of `ack`; raises like `SQLiteBuffer.committed`."""
        return await self._rows.acknowledged(taken)

    def new_upload(self) -> Upload:
        """Something to receive an artifact in, for `take_in`."""
        return Upload(self._disk)

    async def take_in(self, arrival: Arrival, chunks: AsyncIterator[bytes], size: int | None) -> Taken:
        """Receives and publishes; raises like `store`. Its row is visible, but may not be committed."""
        upload = arrival.upload
        with Reservation(self._capacity) as room:
            try:
                with told_of_no_room(upload):
                    await self.intake.grow(room, size or 0)
                    await self.intake.receive(arrival, chunks, room)
                    return await self.publish(arrival, room)
            finally:
                if upload.on_disk:
                    # To free a large file takes its time.
                    await self.threads.run_for(upload.size, upload.discard)

    async def wait_for_room(self) -> None:
        """Returns when an artifact's rows would be accepted; raises like `SQLiteBuffer.wait_for_room`."""
        await self._rows.wait_for_room()

    async def publish(self, arrival: Arrival, room: Reservation) -> Taken:
        """Gives what was received in `room` its name and its row; the caller discards what is left."""
        key, upload = arrival.key, arrival.upload
        async with self.alone(key):
            # Before a file is touched: a row that found no room would cost the artifact it replaces.
            await self._rows.wait_for_room(upload=not arrival.from_object_store)
            arrival.check()
            old = self.find(key)
            try:
                row = await self.threads.run_for(upload.size, self._finish, arrival, old)
                may_stay = upload.published is None and not self.is_doomed(key)
                if may_stay and await self._stays(key, old, arrival):
                    # Whoever stored it may still be waiting for its commit.
                    return self._rows.before(key)
                if upload.published is None:
                    # What nobody vouches for, is damaged or doomed is healed like what is to be replaced.
                    await self.threads.run_for(upload.size, upload.publish_over, key)
                tickets = self._record(row, upload=not arrival.from_object_store)
            except BaseException:
                await self._take_back(arrival, old, room)
                raise
            finally:
                self._replacing.pop(key, None)
            if upload.published is not None:
                # It was hashed while it was written: whoever reads it need not do that again.
                self._verified.add(upload.published, row)
            room.published(row.size_bytes, replaced=old.size_bytes if old else 0)
        return Taken(Stored.REPLACED if old else Stored.CREATED, *tickets)

    async def _take_back(self, arrival: Arrival, old: ArtifactAccess | None, room: Reservation) -> None:
        """Not even the file of a request that was cancelled stays: its client was told nothing.

        But for one that has taken the place of an artifact: that was acknowledged, and has no file any more.
        """
        key, published = arrival.key, arrival.upload.published
        if published is None:
            return
        coming, row = self._replacing.get(key, (None, None))
        if old is None or row is None or coming != published.inode:
            await self.threads.run(self._disk.delete_file, key, published.inode)
            return
        self._record(row, upload=not arrival.from_object_store)
        room.published(row.size_bytes, replaced=old.size_bytes)

    async def _stays(self, key: str, old: ArtifactAccess | None, arrival: Arrival) -> bool:
        """Whether the file that has the name keeps it: whole, and not passed by by a request to clean."""
        body = arrival.upload.finished_file
        standing = await self.threads.run(self._healing.standing, key, old, body, hash_up_to=VERIFY_MAX_BYTES)
        if standing is None:
            return False
        label, row = standing.file.label, self.find(key)
        if label is not None and not agrees(row, label) and not self._is_live(key, label):
            return False
        if label is not None:
            self.take_at_its_word(key, standing.file, standing.proven or None)
        elif row is not None and standing.proven:
            self._verified.add(standing.file, row)
        return True

    def _record(self, row: ArtifactAccess, *, upload: bool) -> tuple[Ticket, Ticket | None]:
        """Tells the tables of a file that has its final name, all in one turn of the event loop."""
        self._verified.forget(row.key)
        tickets = self._rows.record(row, upload=upload)
        self.on_stored(row.key)
        return tickets

    def _finish(self, arrival: Arrival, old: ArtifactAccess | None) -> ArtifactAccess:
        """Gives the upload its name unless another keeps that; answers its row."""
        key, upload, stored_at = arrival.key, arrival.upload, now_us()
        file, found = upload.finish(arrival.expected_sha256, stored_at)
        row = ArtifactAccess(key, file.size, stored_at, file.digest(), True, *arrival.origin, stored_at)
        if old is not None:
            # Readers who find the new file before the new row is known must not hold it against the old one,
            # also where files say nothing of themselves.
            self._replacing[key] = (found.inode, row)
        publish = upload.publish_over if arrival.replace else upload.publish_new
        publish(key)
        return row

    async def adopt(self, row: ArtifactAccess, *, upload: bool = True) -> None:
        """Takes a whole file that lies under its key without a row. The caller is `alone` with the key."""
        await self._rows.wait_for_room(upload=upload)
        self._record(row, upload=upload)
        self._capacity.books.published(row.size_bytes, replaced=0)

    def alone(self, key: str) -> asyncio.Lock:
        """Lets one task at a time change what is under a key. The lock lives as long as somebody has it."""
        return self.locks.of(key)

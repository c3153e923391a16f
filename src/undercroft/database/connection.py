"""Every connection the node has to SQLite, and what each may do.

A `Database` is one file. Its writer thread owns the only connection that writes, so that inside the
process nobody ever meets a lock and nobody starves: work is done in the order it was submitted.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import apsw
import structlog

from undercroft.database.connection_thread import ConnectionThread, processors
from undercroft.database.schema import Schema, check_file, is_current, migrate
from undercroft.database.upkeep import (
    PAGE_BYTES,
    DiskSize,
    copy_wal,
    has_room_to_copy,
    release_pages,
    size_on_disk,
    truncate_wal,
    wal_path,
)
from undercroft.durable import sync_file
from undercroft.errors import ClosedError, DatabaseLockedError, DataDirectoryError

log = structlog.get_logger(__name__)

T = TypeVar("T")

# How long SQLite itself waits for a lock of another process before it answers "busy". Short, because
# the buffers retry on their own, and what else wants the writer thread must get its turn meanwhile.
BUSY_TIMEOUT_MS = 100

# With fewer processors than threads that have something to do, whoever asks goes before what is written, and
# that before what is copied: docs/decisions/0021-niceness.md.
WRITER_NICENESS = 5
CHECKPOINTER_NICENESS = 10

# A checkpoint starts when the WAL holds this many pages (4 MiB), as SQLite does by default.
CHECKPOINT_PAGES = 1_000

# The event loop, the writer, and a checkpoint beside them. Where each cannot have a processor the loop is the
# one that waits, so the writer makes the checkpoints: docs/decisions/0021-niceness.md.
BUSY_THREADS = 3

# But not of more than 24 MiB, which commits would wait for by a fifth of a second; and if one took that long
# the medium is slow, and those of the next minute are made beside the commits.
MOST_BY_WRITER_PAGES = 6_144
SLOW_CHECKPOINT_S = 0.2
BESIDE_S = 60.0

# A background checkpoint never catches up with a writer that does not pause: when it has copied all it
# saw there is more, and a WAL is only reused from its beginning once it is copied whole. From this size
# on (64 MiB) the writer itself copies the little that came meanwhile.
WAL_LIMIT_PAGES = 16_384

# Each value as SQLite reports it.
PRAGMAS: tuple[tuple[str, str | int, str], ...] = (
    ("auto_vacuum", 2, "INCREMENTAL: pages that deletes leave can be given back; only takes in a new file"),
    ("journal_mode", "wal", "readers never wait for the writer, a commit is one append"),
    ("busy_timeout", BUSY_TIMEOUT_MS, "see BUSY_TIMEOUT_MS"),
    ("wal_autocheckpoint", 0, "a checkpoint inside a commit makes that flush wait for the medium"),
    ("journal_size_limit", 64 << 20, "a WAL that grew under load is cut when it is reused"),
    ("cache_size", -65_536, "64 MiB: keys are hashes, every row touches another index page"),
    ("temp_store", 2, "MEMORY: sorting never writes files beside the data"),
    ("foreign_keys", 1, "SQLite leaves them off by default"),
    ("trusted_schema", 0, "no function of ours is meant to be called from a file's schema"),
)

# What SQLite says when a file, its directory or the file system does not let it write.
NOT_WRITABLE = (apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError, apsw.FullError, apsw.IOError)

# What it says of pages that are not what they must be.
DAMAGED = (apsw.CorruptError, apsw.NotADBError)


def open_connection(path: Path, *, synchronous: str = "NORMAL", read_only: bool = False) -> apsw.Connection:
    """Opens `path` with every PRAGMA set.

    `synchronous` is NORMAL (a commit survives the death of the process, the last ones may be lost
    with the power) or FULL (every commit is on the medium, several times slower for one client).
    """
    connection = apsw.Connection(str(path))
    try:
        # First of all: even setting the journal mode may meet the lock of another process.
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        for name, value, _ in PRAGMAS:
            # To set auto_vacuum takes the write lock, even to what it is: another process may have it.
            if connection.pragma(name) != value:
                connection.pragma(name, value)
        connection.pragma("synchronous", synchronous)
        if read_only:
            connection.pragma("query_only", 1)
    except apsw.Error:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    """One write transaction. IMMEDIATE: a lock is met here, before any work is done."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # Some errors (disk full, I/O) have already rolled back when they reach us.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class Database:
    """One SQLite file: a writer, a reader for long queries, a reader for point queries, checkpoints.

    The constructor touches nothing; `open` does. Raises `DatabaseFileError` for a file that is
    damaged, foreign or newer, and leaves it as it was. Without a schema the file is the caller's own:
    nothing is checked or migrated.
    """

    def __init__(self, path: Path, schema: Schema | None, *, synchronous: str = "NORMAL") -> None:
        self.path = path
        self._schema = schema
        self._synchronous = synchronous
        self._point_reader: apsw.Connection | None = None
        self._writer = self._thread("writer", self._open_writer, WRITER_NICENESS)
        self._reader = self._thread("reader", self._open_reader, 0)
        self._checkpointer = self._thread("checkpointer", self._open_reader_writer, CHECKPOINTER_NICENESS)
        self._spares_a_thread = processors() < BUSY_THREADS
        self._beside_until = 0.0
        self._copier = self._checkpointer
        """Who makes the checkpoint that is due, or made the last one."""
        self._checkpoint_due = False
        self._truncating = False
        self._wal_pages = 0
        self._restart_from = WAL_LIMIT_PAGES
        self.checkpoint_failures = 0
        self.damage: str | None = None
        """What SQLite said when it met a page that is no good; None while it has not."""
        self.on_full: Callable[[], None] = lambda: None
        """Called when SQLite found the disk full. Eviction sets it."""

    def _thread(self, role: str, opener: Callable[[], apsw.Connection], niceness: int) -> ConnectionThread:
        return ConnectionThread(f"{self.path.stem}-{role}", opener, niceness)

    def _open_writer(self) -> apsw.Connection:
        connection = self._open_reader_writer()
        connection.set_wal_hook(self._on_commit)
        return connection

    def _open_reader_writer(self) -> apsw.Connection:
        return open_connection(self.path, synchronous=self._synchronous)

    def _open_reader(self) -> apsw.Connection:
        return open_connection(self.path, read_only=True)

    def open(self) -> None:
        """Checks the file, migrates it and starts the threads. Blocks; call it before serving.

        Raises `DatabaseLockedError` if it must be migrated, or cannot even be read, and another
        process holds a lock; `DataDirectoryError` if it cannot be written; `DatabaseFileError` for a
        file that is not ours to use. Whatever it raises, no thread and no connection is left.
        """
        with self._told():
            try:
                if self._schema is not None:
                    check_file(self.path, self._schema)
                    self._migrate(self._schema)
                self._point_reader = self._open_reader()
                for thread in self._threads():
                    thread.open()
            except BaseException:
                self._abandon()
                raise

    def check(self) -> None:
        """Raises what `open` raises for what the file is, without writing to it."""
        with self._told(), suppress(PermissionError):  # `open` or others meet it, and say what to mend
            if self._schema is not None:
                check_file(self.path, self._schema)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Says in words what is around a file that does not open."""
        try:
            yield
        except (apsw.BusyError, apsw.LockedError) as error:
            raise DatabaseLockedError(
                f"another process holds a lock on {self.path} ({error}): end it and start again"
            ) from error
        except NOT_WRITABLE as error:
            raise DataDirectoryError(
                f"cannot write {self.path} ({error}): mend its permissions, make room on its disk, "
                "or choose another data directory"
            ) from error

    def _migrate(self, schema: Schema) -> None:
        connection = open_connection(self.path, synchronous=self._synchronous)
        try:
            # SQLite opens a file that it may only read, and says so at the first write.
            if connection.readonly("main"):
                raise apsw.ReadOnlyError(f"{self.path.name} may only be read")
            # A file that needs nothing is not written to, and so opens next to a backup that locks it.
            if not is_current(connection, schema):
                with transaction(connection):
                    migrate(connection, schema)
        finally:
            connection.close()

    def _threads(self) -> tuple[ConnectionThread, ...]:
        return (self._reader, self._writer, self._checkpointer)

    def _abandon(self) -> None:
        for thread in self._threads():
            thread.abandon()
        self._close_point_reader()

    async def write(self, function: Callable[[apsw.Connection], T]) -> T:
        """Runs `function` on the writer. It opens its own `transaction`.

        Raises `apsw.FullError`, too, while the WAL has grown so large that it could not be copied.
        """
        try:
            await self._keep_wal_copyable()
            return await self._writer.run(function)
        except apsw.FullError:
            self.on_full()
            raise
        except DAMAGED as error:
            self._tell_damage(error)
            raise

    async def _keep_wal_copyable(self) -> None:
        """Raises `apsw.FullError`; see `write`."""
        if not self._is_wal_too_large():
            return
        with suppress(apsw.Error):
            await self.truncate_wal()
        if self._is_wal_too_large():
            raise apsw.FullError(
                f"the WAL of {self.path.name} has {self._wal_pages * PAGE_BYTES} bytes and the disk "
                "no room to copy it to: end whoever reads the database for so long, or make room"
            )

    def _is_wal_too_large(self) -> bool:
        return self._wal_pages >= CHECKPOINT_PAGES and not has_room_to_copy(self.path, self._wal_pages)

    async def read(self, function: Callable[[apsw.Connection], T]) -> T:
        """Runs a query that may take long, off the event loop."""
        try:
            return await self._reader.run(function)
        except DAMAGED as error:
            self._tell_damage(error)
            raise

    def _tell_damage(self, error: apsw.Error) -> None:
        """Once is enough: what is damaged stays so until somebody does something."""
        if self.damage is None:
            self.damage = str(error)
            log.error(
                "database_damaged",
                path=str(self.path),
                error=str(error),
                what_to_do="stop the node, move the file away, start again: "
                "docs/operations.md, A damaged database",
            )

    def find(self, sql: str, *values: "apsw.SQLiteValue") -> tuple[Any, ...] | None:
        """The first row of a point query, run at once on the caller's thread (the event loop's).

        Only for a look-up through an index: some 10 microseconds, less than a hand-over to a thread.
        """
        if self._point_reader is None:
            raise ClosedError(f"{self.path.name} is not open")
        try:
            return self._point_reader.execute(sql, values).fetchone()
        except DAMAGED as error:
            self._tell_damage(error)
            raise

    async def sync(self) -> None:
        """Makes what is committed survive a loss of power, with synchronous=NORMAL too. Raises OSError.

        What is not in the WAL any more was synced by the checkpoint that moved it. A checkpoint would
        do as well, but not while another process holds a lock.
        """
        with suppress(FileNotFoundError):
            await asyncio.to_thread(sync_file, wal_path(self.path))

    def size_on_disk(self) -> DiskSize:
        """Bytes of the file and of its WAL. Raises OSError."""
        return size_on_disk(self.path)

    async def release_pages(self) -> None:
        """Frees what writer and reader have cached; the point reader keeps what clients ask for."""
        for thread in (self._writer, self._reader):
            await thread.run(release_pages)

    async def relieve_wal(self) -> None:
        """Returns when a WAL that has grown is copied, but for what others commit meanwhile.

        For whoever writes much without hurry: a WAL that is copied whole starts again by itself, but
        one that only ever grows is restarted by the writer (`WAL_LIMIT_PAGES`), which holds up commits.
        """
        if self._wal_pages >= CHECKPOINT_PAGES:
            # Behind the checkpoint that the last commit asked for; this one takes what came meanwhile.
            with suppress(apsw.BusyError, apsw.LockedError):
                await self._copier.run(self._copy_wal)

    def _copy_wal(self, connection: apsw.Connection) -> int:
        """Answers the pages in the WAL. What was due before this is done, unless the writer has it."""
        if self._checkpoint_due:
            # The writer would meet this one's lock at its restart, and hold up commits until it gives up.
            return self._wal_pages
        return copy_wal(connection)

    async def truncate_wal(self) -> int | None:
        """Empties the WAL into the file and cuts it to nothing; answers how many pages it had.

        None when a reader or another process is in the way: an ordinary "not now". Whoever made the last
        checkpoint copies nearly all of it, the writer what was committed meanwhile. Raises other errors
        of SQLite.
        """
        self._truncating = True
        try:
            # Kept if the rest fails: what was known is of this process's last commit; others empty it.
            in_wal = self._wal_pages = await self._copier.run(self._copy_wal)
            await self._writer.run(truncate_wal)
            self._wal_pages = 0
        except (apsw.BusyError, apsw.LockedError):
            return None
        else:
            return in_wal
        finally:
            self._truncating = False

    def _on_commit(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        """Called by SQLite in the writer thread after each commit with the size of the WAL."""
        self._wal_pages = pages
        # Next to a truncation it would be a second checkpoint at once, and one of them answers "busy".
        if pages >= CHECKPOINT_PAGES and not self._checkpoint_due and not self._truncating:
            self._checkpoint_due = True
            self._copier = self._who_copies(pages)
            self._copier.post(self._checkpoint)
        return apsw.SQLITE_OK

    def _who_copies(self, pages: int) -> ConnectionThread:
        by_writer = self._spares_a_thread and pages <= MOST_BY_WRITER_PAGES
        return self._writer if by_writer and time.monotonic() >= self._beside_until else self._checkpointer

    def _checkpoint(self, connection: apsw.Connection) -> None:
        began = time.monotonic()
        try:
            in_wal, _ = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.Error:
            # Locked or no space: the WAL keeps everything, the next commit asks again. How long it is is not
            # known, so how long it may be stays: sibling processes that copy it say "locked" all the time.
            self.checkpoint_failures += 1
            self._checkpoint_due = False
            return
        finally:
            now = time.monotonic()
            # What the checkpointer takes says more of who else wants a processor than of the medium.
            if self._copier is self._writer and now - began >= SLOW_CHECKPOINT_S:
                self._beside_until = now + BESIDE_S
        if in_wal >= self._restart_from:
            self._writer.post(self._restart_wal)  # still due: two checkpoints at once answer "busy"
            return
        if in_wal < WAL_LIMIT_PAGES:
            self._restart_from = WAL_LIMIT_PAGES
        self._checkpoint_due = False

    def _restart_wal(self, connection: apsw.Connection) -> None:
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
        except apsw.Error:
            self.checkpoint_failures += 1
            # A reader stays where it is: to wait BUSY_TIMEOUT_MS for it after every commit helps nobody.
            self._restart_from += WAL_LIMIT_PAGES
        self._checkpoint_due = False

    async def close(self) -> None:
        """Finishes submitted work and closes every connection; the last one empties the WAL. Idempotent."""
        for thread in self._threads():
            await thread.close()
        self._close_point_reader()

    def _close_point_reader(self) -> None:
        if self._point_reader is not None:
            self._point_reader.close()
            self._point_reader = None

"""What keeps a database file small and sound: giving back pages, cutting the WAL, statistics, checks.

But for `size_on_disk` and `integrity_problems` these are functions over a connection, to be run in the
thread that owns it. Each is one short step; who calls them decides how many and how fast.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import apsw

from undercroft.database.schema import Schema, migrations
from undercroft.errors import DatabaseFileError, DatabaseLockedError, DataDirectoryError

# What SQLite takes for a new file.
PAGE_BYTES = 4_096

# How long the writer waits at most for readers and other processes to make way for a truncation: it
# commits nothing meanwhile. Point queries are over in microseconds; whoever stays longer is asked again
# by the next step of maintenance.
TRUNCATE_PATIENCE_MS = 10

# ANALYZE looks at so many rows of each index instead of at all (https://sqlite.org/lang_analyze.html).
ANALYSIS_ROWS = 400

# Instructions of SQLite that PRAGMA integrity_check runs for a row of our tables: 25.0 by its progress
# handler, at 1,000 rows and at 20,000. The walk over the pages before counts one for each page.
STEPS_PER_ROW = 25

# So often progress is told: a few times in a second.
STEPS_PER_REPORT = 1_000

# Who checks can wait, unlike the node's own connections, but not for ever.
CHECK_PATIENCE_MS = 5_000

# No list of problems is read further than this, and SQLite stops at so many by itself.
MAX_PROBLEMS = 100


class DiskSize(NamedTuple):
    """Bytes a database takes on disk."""

    file: int
    wal: int

    @property
    def total(self) -> int:
        """Both."""
        return self.file + self.wal


class Pages(NamedTuple):
    """The pages of a database as the last commit left them; some may still be in the WAL only."""

    size: int
    """Bytes in one page."""
    total: int
    free: int
    """Pages inside the file that hold nothing."""

    @property
    def used_bytes(self) -> int:
        """What the file would take without its free pages, in bytes."""
        return (self.total - self.free) * self.size


def wal_path(path: Path) -> Path:
    """Where the WAL of a database lies."""
    return path.with_name(path.name + "-wal")


def size_on_disk(path: Path) -> DiskSize:
    """Bytes of the file and of its WAL; 0 for what is not there. Raises OSError."""
    return DiskSize(_bytes_of(path), _bytes_of(wal_path(path)))


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def has_room_to_copy(path: Path, wal_pages: int) -> bool:
    """Whether a checkpoint will find room for so many pages of the WAL, whatever is in the file already.

    A reader that never ends lets the WAL grow. If it filled the disk not even the reader's end would help:
    the file would have to grow before the WAL can shrink. About a microsecond.
    """
    try:
        answer = os.statvfs(path)
    except OSError:
        return True  # SQLite will meet it, too, and say so
    return answer.f_bavail * answer.f_frsize >= wal_pages * PAGE_BYTES


def pages(connection: apsw.Connection) -> Pages:
    """Pages there are. One statement of one row: each step away from SQLite waits for Python's lock."""
    found = connection.execute(
        "SELECT page_size, page_count, freelist_count "
        "FROM pragma_page_size, pragma_page_count, pragma_freelist_count"
    ).get
    return Pages(*found)


class Vacuumed(NamedTuple):
    """What one step of vacuum did."""

    given_back: int
    """Pages by which the file gets shorter."""
    left: Pages


def vacuum_slice(connection: apsw.Connection, count: int) -> Vacuumed:
    """Cuts up to `count` free pages from the end of the file, in a transaction of its own.

    Pages in use at the end move to free ones before; the file itself becomes shorter with the next
    checkpoint that copies everything. Raises `apsw.BusyError`.
    """
    before = pages(connection)
    # One row for each page, and nothing happens beyond the last row that is asked for.
    connection.execute(f"PRAGMA incremental_vacuum({int(count)})").fetchall()
    after = pages(connection)
    return Vacuumed(before.total - after.total, after)


def copy_wal(connection: apsw.Connection) -> int:
    """Copies what readers allow out of the WAL; answers the pages in it. Raises `apsw.BusyError`.

    Nobody waits for it, so it is the checkpointer's work.
    """
    in_wal, _ = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    return in_wal


def truncate_wal(connection: apsw.Connection) -> None:
    """Copies the rest of the WAL and cuts its file to nothing.

    No commit passes meanwhile, so it is the writer's work, after `copy_wal` has left little to do.
    Raises `apsw.BusyError` if a reader or a lock is in the way.
    """
    patience_ms = connection.pragma("busy_timeout")
    connection.set_busy_timeout(min(TRUNCATE_PATIENCE_MS, patience_ms))
    try:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    finally:
        connection.set_busy_timeout(patience_ms)


def optimize(connection: apsw.Connection) -> None:
    """Renews the planner's statistics of tables that changed much. Raises `apsw.BusyError`."""
    connection.pragma("analysis_limit", ANALYSIS_ROWS)
    # 0x10000: also tables that this connection never queries, which are all: it is the writer.
    connection.execute("PRAGMA optimize(0x10002)").fetchall()


def release_pages(connection: apsw.Connection) -> None:
    """Frees what the connection has cached (https://sqlite.org/pragma.html#pragma_shrink_memory).

    It reads what it needs again, from the memory of the kernel as long as that has it.
    """
    connection.execute("PRAGMA shrink_memory").fetchall()


def integrity_problems(path: Path, schema: Schema, on_progress: Callable[[float], None]) -> list[str]:
    """Everything SQLite finds wrong in a database, at most `MAX_PROBLEMS`; empty if it is sound.

    Reads all of it through a connection of its own that cannot write, next to a running node or
    without one. `on_progress` gets the share done, 0.0 to 1.0, estimated by rows and pages. What it
    sees is one moment: until it ends, the WAL of a running node cannot start again from its beginning.

    Raises `DatabaseFileError` for a file that is foreign or newer, `DatabaseLockedError` if another
    process keeps it locked, `DataDirectoryError` if it cannot be read. Blocks.
    """
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.set_busy_timeout(CHECK_PATIENCE_MS)
            return _problems(connection, path, schema, on_progress)
        finally:
            connection.close()
    except (apsw.CorruptError, apsw.NotADBError, apsw.FormatError) as error:
        return [str(error)]  # too damaged to say more
    except (apsw.BusyError, apsw.LockedError) as error:
        raise DatabaseLockedError(
            f"another process keeps {path} locked ({error}): try again later"
        ) from error
    except (apsw.CantOpenError, apsw.PermissionsError, apsw.ReadOnlyError, apsw.IOError) as error:
        raise DataDirectoryError(f"cannot read {path} ({error}): mend its permissions or its disk") from error


def _problems(
    connection: apsw.Connection, path: Path, schema: Schema, on_progress: Callable[[float], None]
) -> list[str]:
    connection.pragma("trusted_schema", 0)
    # One moment for everything: what is counted is what is checked.
    connection.execute("BEGIN")
    version = _checked_version(connection, path, schema)
    expected = {table for since, table in schema.tables if since <= version}
    present = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    problems = [f"table {table} is missing" for table in sorted(expected - present)]
    _report_progress(connection, sorted(expected & present), on_progress)
    try:
        # One by one: an error that ends it must not take along what was found before.
        for (text,) in connection.execute(f"PRAGMA integrity_check({MAX_PROBLEMS})"):
            # The first row has a headline, and all that is wrong with the pages.
            lines = str(text).splitlines()
            problems += [line for line in lines if line != "ok" and not line.startswith("***")]
    except apsw.CorruptError as error:
        problems.append(str(error))
    on_progress(1.0)
    return problems[:MAX_PROBLEMS]


def _checked_version(connection: apsw.Connection, path: Path, schema: Schema) -> int:
    owner, version = connection.pragma("application_id"), connection.pragma("user_version")
    if owner != schema.application_id:
        raise DatabaseFileError(
            f"{path} is a database of another program (application id {owner:#x}, "
            f"expected {schema.application_id:#x})"
        )
    if version > len(migrations(schema)):
        raise DatabaseFileError(
            f"{path} has schema version {version}, this Undercroft knows versions up to "
            f"{len(migrations(schema))}: check it with the newer Undercroft that wrote it"
        )
    return int(version)


def _report_progress(
    connection: apsw.Connection, tables: list[str], on_progress: Callable[[float], None]
) -> None:
    """Has SQLite tell `on_progress` about the work from now on."""
    expected = pages(connection).total
    # What is damaged cannot always be counted; the check itself says what is wrong there.
    with suppress(apsw.CorruptError):
        for table in tables:
            expected += STEPS_PER_ROW * int(connection.execute(f"SELECT count(*) FROM {table}").get)  # noqa: S608
    done = 0

    def report() -> bool:
        nonlocal done
        done += STEPS_PER_REPORT
        # Never quite all before the end: triggers and damage make it more than was expected.
        on_progress(min(done / expected, 0.99))
        return False

    connection.set_progress_handler(report, STEPS_PER_REPORT)

"""A copy of a database as it is at one moment, beside a running node (https://sqlite.org/backup.html)."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import apsw

from undercroft.database.upkeep import CHECK_PATIENCE_MS
from undercroft.durable import sync_file
from undercroft.errors import DataDirectoryError

# Copied between two reports: 16 MiB of the usual pages, some 10 ms.
STEP_PAGES = 4_096

# Keys read at once.
SLICE_ROWS = 1_000


def back_up(source: Path, copy: Path, on_progress: Callable[[int, int], None]) -> None:
    """Writes what is committed in `source` into the new file `copy`, through to the medium.

    It sees one moment however long it takes: writers go on, and a running node's WAL grows until the end.
    `on_progress` gets the pages done and those there are. Raises `DataDirectoryError` if the one cannot be
    read or the other not be written. Blocks.
    """
    try:
        with (
            closing(apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READONLY)) as from_,
            closing(apsw.Connection(str(copy))) as to,
        ):
            from_.set_busy_timeout(CHECK_PATIENCE_MS)
            # One moment: without it each commit of the node would make the copy start again.
            from_.execute("BEGIN")
            from_.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            with to.backup("main", from_, "main") as backup:
                while not backup.done:
                    backup.step(STEP_PAGES)
                    on_progress(backup.page_count - backup.remaining, backup.page_count)
    except apsw.Error as error:
        raise DataDirectoryError(f"cannot copy {source} to {copy}: {error}") from error
    sync_file(copy)


def artifacts_in(path: Path) -> Iterator[tuple[str, int]]:
    """Key and size in bytes of each artifact in a database that nobody writes to. Blocks."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        after = ""
        while rows := connection.execute(NEXT_ROWS, (after, SLICE_ROWS)).fetchall():
            for key, size in rows:
                after = str(key)
                yield after, int(str(size))


def artifact_count(path: Path) -> int:
    """How many artifacts the database has. Raises `DataDirectoryError` if it cannot be read. Blocks."""
    try:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            count = connection.execute("SELECT count(*) FROM cache_artifacts").get
            return int(str(count))
    except apsw.Error as error:
        raise DataDirectoryError(
            f"cannot read {path}: {error}; `undercroft check` says what is wrong with it, "
            "Operations in the documentation how to recover"
        ) from error


NEXT_ROWS = "SELECT key, size_bytes FROM cache_artifacts WHERE key > ? ORDER BY key LIMIT ?"

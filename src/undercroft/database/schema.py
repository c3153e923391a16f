"""What the tables are: numbered migrations per file, and the refusal of files that are not ours."""

from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import apsw

from undercroft.errors import DatabaseFileError, DataDirectoryError


@dataclass(frozen=True)
class Schema:
    """The schema of one database file.

    `application_id` is written into the file's header (PRAGMA application_id), so that a foreign
    file, or the other file of ours, is known before anything is written to it.
    """

    name: str
    application_id: int
    tables: tuple[tuple[int, str], ...]
    """Each with the version since which there is one."""


# The last one says that a table is missing.
UNUSABLE = (
    apsw.NotADBError,
    apsw.CorruptError,
    apsw.FormatError,
    apsw.SQLError,
)

# These speak of the bytes of the file. Every other such error speaks of what is around it, a full disk
# above all: SQLite opens no database without room for a `-shm` beside it.
UNREADABLE = frozenset(
    {
        apsw.SQLITE_IOERR_READ,
        apsw.SQLITE_IOERR_SHORT_READ,
        apsw.SQLITE_IOERR_CORRUPTFS,
        apsw.SQLITE_IOERR_DATA,
    }
)

KEY_VALUES = Schema("key_values", 0x55434B56, ((1, "key_value_entries"),))
NODE = Schema(
    "node",
    0x55434E44,
    (
        (1, "cache_artifacts"),
        (1, "s3_transfers"),
        (1, "artifact_totals"),
        (2, "cursors"),
        (2, "boots"),
        (2, "clean_jobs"),
        (3, "tokens"),
    ),
)


def migrations(schema: Schema) -> list[str]:
    """The SQL of each migration; the first brings an empty file to version 1."""
    folder = resources.files(__package__) / "migrations" / schema.name
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    for number, file in enumerate(files, start=1):
        _check_number(file, number)
    return [file.read_text() for file in files]


def _check_number(file: Traversable, number: int) -> None:
    if file.name[:5] != f"{number:04}_":
        raise ValueError(f"migration {file.name} stands at place {number}: a number is missing or doubled")


def check_file(path: Path, schema: Schema) -> None:
    """Refuses a file that is damaged, foreign or newer, without writing to it.

    Raises `DatabaseFileError`, and `DataDirectoryError` if it cannot be opened for what is around it.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    try:
        _check_contents(path, schema)
    except UNUSABLE as error:
        raise _unusable(path, error) from error
    except (apsw.IOError, apsw.CantOpenError) as error:
        if getattr(error, "extendedresult", None) in UNREADABLE or not path.is_file():
            raise _unusable(path, error) from error
        raise DataDirectoryError(
            f"cannot open {path} ({error}): make room on its disk, or mend its permissions; "
            "it was left untouched"
        ) from error


def _unusable(path: Path, error: apsw.Error) -> DatabaseFileError:
    return DatabaseFileError(
        f"{path} is not a usable SQLite database ({error}); "
        "it was left untouched: restore it from a backup, or move it away to start empty"
    )


def _check_contents(path: Path, schema: Schema) -> None:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.set_busy_timeout(1_000)
        # The last connection to close would copy a WAL that is left over into a file that may be refused.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        version = _check_owner(connection, path, schema)
        if version:
            _check_length(connection, path)
            _touch_both_ends(connection, [table for since, table in schema.tables if since <= version])
    finally:
        connection.close()


def _check_owner(connection: apsw.Connection, path: Path, schema: Schema) -> int:
    owner, version = connection.pragma("application_id"), connection.pragma("user_version")
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if owner != schema.application_id and (owner, tables) != (0, (0,)):
        raise DatabaseFileError(
            f"{path} is a database of another program (application id {owner:#x}, "
            f"expected {schema.application_id:#x}); it was left untouched: "
            "move it away or choose another data directory"
        )
    newest = len(migrations(schema))
    if version > newest:
        raise DatabaseFileError(
            f"{path} has schema version {version}, this Undercroft knows versions up to {newest}; "
            "it was left untouched: run the newer Undercroft that wrote it"
        )
    return int(version)


def _check_length(connection: apsw.Connection, path: Path) -> None:
    """SQLite itself sees when whole pages are missing at the end, but not when the last one is cut."""
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size:
        return  # pages may be in there only
    whole = connection.pragma("page_count") * connection.pragma("page_size")
    if path.stat().st_size < whole:
        raise apsw.CorruptError(f"it has {path.stat().st_size} bytes of {whole}")


def _touch_both_ends(connection: apsw.Connection, tables: list[str]) -> None:
    """Reads the first and the last row of each table: a truncated file fails here, whatever its size.

    A whole check reads the whole file, far too slow for a start; that is maintenance's work.
    """
    for table in tables:
        for order in ("ASC", "DESC"):
            connection.execute(f"SELECT * FROM {table} ORDER BY rowid {order} LIMIT 1").fetchall()  # noqa: S608


def is_current(connection: apsw.Connection, schema: Schema) -> bool:
    """Whether `migrate` has nothing to do."""
    return bool(connection.pragma("user_version") == len(migrations(schema)))


def is_older(path: Path, schema: Schema) -> bool:
    """Whether the file of an older version would be migrated. It is not written to.

    Raises `DatabaseFileError` for one that is damaged, foreign or newer, `apsw.BusyError`.
    """
    check_file(path, schema)
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.set_busy_timeout(1_000)
        return not is_current(connection, schema)
    finally:
        connection.close()


def migrate(connection: apsw.Connection, schema: Schema) -> None:
    """Brings the file to the newest version, inside the caller's transaction."""
    version = connection.pragma("user_version")
    steps = migrations(schema)
    for step in steps[version:]:
        connection.execute(step).fetchall()
    connection.pragma("application_id", schema.application_id)
    connection.pragma("user_version", len(steps))

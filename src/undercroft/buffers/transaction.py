"""Writing batches in one transaction, and what each refusal of SQLite means for the rows in it."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import apsw

from undercroft.buffers.bufferable import Batch, Bufferable
from undercroft.database import transaction

# Primary result codes (https://www.sqlite.org/rescode.html). Codes, never texts: those change.
LOCKED_CODES = frozenset({apsw.SQLITE_BUSY, apsw.SQLITE_LOCKED})
"""Somebody else holds a lock: the same transaction succeeds later."""

ROW_CODES = frozenset(
    {
        apsw.SQLITE_ERROR,
        apsw.SQLITE_CONSTRAINT,
        apsw.SQLITE_MISMATCH,
        apsw.SQLITE_TOOBIG,
        apsw.SQLITE_RANGE,
    }
)
"""Something about the rows themselves. Every other code (disk full, I/O, no memory, corrupt) is about
the ground they are written on, and no reason to part with a row."""


class RefusedRow(NamedTuple):
    """A row SQLite will not take, and why."""

    operation: str
    entry: Any
    error: str


class Written(NamedTuple):
    """What one committed transaction did."""

    duration_ms: float
    rows_by_operation: dict[str, int]
    refused: list[RefusedRow]


def is_locked(error: apsw.Error) -> bool:
    """Whether the error is SQLITE_BUSY or SQLITE_LOCKED, extended codes included."""
    return getattr(error, "result", None) in LOCKED_CODES


def is_about_rows(error: apsw.Error | TypeError | ValueError) -> bool:
    """Whether the rows are at fault, so that parting them finds the one."""
    return not isinstance(error, apsw.Error) or getattr(error, "result", None) in ROW_CODES


def write_batches(
    connection: apsw.Connection, table: Bufferable[Any, Any], batches: Sequence[Batch]
) -> Written:
    """Commits all batches in one transaction, but for rows SQLite refuses.

    Raises `apsw.Error` when nothing was committed.
    """
    started = time.perf_counter()
    refused: list[RefusedRow] = []
    # A lone batch is a transaction by itself, which `write_batch` sees to. BEGIN and COMMIT around one
    # statement would give up Python's global lock twice more, and next to a busy event loop to get it back
    # costs more than the statement.
    if len(batches) != 1 or _error_about_rows(connection, table, *batches[0]) is not None:
        with transaction(connection):
            for operation, entries in batches:
                refused += _write_or_part(connection, table, operation, entries)
    duration_ms = (time.perf_counter() - started) * 1_000
    rows: Counter[str] = Counter()
    for operation, entries in batches:
        rows[operation] += len(entries)
    rows.subtract(row.operation for row in refused)
    # Where all were refused nothing was written.
    return Written(duration_ms, {operation: count for operation, count in rows.items() if count}, refused)


def _error_about_rows(
    connection: apsw.Connection, table: Bufferable[Any, Any], operation: str, entries: Sequence[Any]
) -> Exception | None:
    """Writes the entries; answers the error if some row is bad, raises what is not about rows."""
    try:
        table.write_batch(connection, operation, entries)
    except (apsw.Error, TypeError, ValueError) as error:
        if not is_about_rows(error):
            raise
        return error
    return None


def _write_or_part(
    connection: apsw.Connection, table: Bufferable[Any, Any], operation: str, entries: Sequence[Any]
) -> list[RefusedRow]:
    """Writes the entries but for the bad rows, and answers those.

    Errors that are not about rows go up and take the transaction along; so does one that even the
    empty batch meets, for then the statement or the table is at fault.
    """
    error = _error_about_rows(connection, table, operation, entries)
    if error is None:
        return []
    table.write_batch(connection, operation, [])
    return _part(connection, table, operation, entries, error)


def _part(
    connection: apsw.Connection,
    table: Bufferable[Any, Any],
    operation: str,
    entries: Sequence[Any],
    error: Exception,
) -> list[RefusedRow]:
    """Halves entries that met an error until the bad rows are alone, and writes the others.

    A statement that fails has undone itself (SQLite's ABORT), so the halves start from where it
    started.
    """
    if len(entries) == 1:
        return [RefusedRow(operation, entries[0], f"{type(error).__name__}: {error}")]
    middle = len(entries) // 2
    bad: list[RefusedRow] = []
    for half in (entries[:middle], entries[middle:]):
        its_error = _error_about_rows(connection, table, operation, half)
        if its_error is not None:
            bad += _part(connection, table, operation, half, its_error)
    return bad

"""Writing batches in one transaction, and what each refusal of SQLite means for the rows in it."""

import time
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
    rows: dict[str, int] = {}
    refused: list[RefusedRow] = []
    if len(batches) == 1 and _written_alone(connection, table, batches[0]):
        rows[batches[0].operation] = len(batches[0].entries)
        return Written((time.perf_counter() - started) * 1_000, rows, refused)
    with transaction(connection):
        for operation, entries in batches:
            bad = _write_or_halve(connection, table, operation, entries)
            rows[operation] = rows.get(operation, 0) + len(entries) - len(bad)
            refused += bad
    return Written((time.perf_counter() - started) * 1_000, rows, refused)


def _written_alone(connection: apsw.Connection, table: Bufferable[Any, Any], batch: Batch) -> bool:
    """Commits a lone batch by its statement alone; False if a row in it is bad.

    A statement is a transaction by itself. BEGIN and COMMIT around it would give up Python's global
    lock twice more, and next to a busy event loop to get it back costs more than the statement.
    """
    try:
        table.write_batch(connection, *batch)
    except (apsw.Error, TypeError, ValueError) as error:
        if not is_about_rows(error):
            raise
        return False
    return True


def _write_or_halve(
    connection: apsw.Connection, table: Bufferable[Any, Any], operation: str, entries: Sequence[Any]
) -> list[RefusedRow]:
    """Writes the entries; if some row is bad, halves them until it is alone. Answers the bad rows.

    A statement that fails has undone itself (SQLite's ABORT), so the halves start from where it
    started. Errors that are not about rows go up and take the transaction along; so does one that
    even the empty batch meets, for then the statement or the table is at fault.
    """
    try:
        table.write_batch(connection, operation, entries)
    except (apsw.Error, TypeError, ValueError) as error:
        if not is_about_rows(error):
            raise
        table.write_batch(connection, operation, [])
        if len(entries) == 1:
            return [RefusedRow(operation, entries[0], f"{type(error).__name__}: {error}")]
        middle = len(entries) // 2
        return [
            *_write_or_halve(connection, table, operation, entries[:middle]),
            *_write_or_halve(connection, table, operation, entries[middle:]),
        ]
    return []

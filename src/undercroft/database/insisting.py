"""For whoever cannot come back later: work that is tried again while another process has the lock."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import apsw

from undercroft.database.connection import Database
from undercroft.errors import DatabaseLockedError, DataDirectoryError

T = TypeVar("T")

# Times BUSY_TIMEOUT_MS: some five seconds.
LOCKED_ATTEMPTS = 50


async def insisting(database: Database, ask: Callable[[], Awaitable[T]]) -> T:
    """What `ask` answers, which is tried again while the database is locked.

    Raises `DatabaseLockedError` when another process does not let go of it, `DataDirectoryError` for
    other errors of SQLite.
    """
    left = LOCKED_ATTEMPTS
    while True:
        left -= 1
        try:
            return await ask()
        except apsw.Error as error:
            if not isinstance(error, apsw.BusyError | apsw.LockedError):
                raise DataDirectoryError(f"cannot use {database.path}: {error}") from error
            if not left:
                reason = f"another process holds a lock on {database.path} ({error}): end it and try again"
                raise DatabaseLockedError(reason) from error

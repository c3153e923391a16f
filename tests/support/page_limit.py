"""A full disk, as SQLite itself sees it: the file may not grow."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import apsw

from undercroft.database import Database

NO_LIMIT = 0xFFFFFFFE


def _limit(connection: apsw.Connection) -> None:
    connection.pragma("max_page_count", connection.pragma("page_count"))


@asynccontextmanager
async def no_more_pages(database: Database) -> AsyncIterator[None]:
    """Whatever needs another page fails with SQLITE_FULL until the end of the block."""
    await database.write(_limit)
    try:
        yield
    finally:
        await database.write(lambda connection: connection.pragma("max_page_count", NO_LIMIT))

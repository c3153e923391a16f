"""Lists of rows for commands: a page at a time, so that a running node is held up by none."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import apsw

from undercroft.database.connection import Database, transaction

# A slice to be deleted: the writer of a running node waits for it.
DELETE_ROWS = 500

# Above every character that a key has: the end of those with a prefix.
LAST = "\U0010ffff"


class Listed(NamedTuple):
    """A row of the table of artifacts."""

    key: str
    size_bytes: int
    last_accessed_at: int
    """Microseconds since the epoch."""


async def rows_by_use(database: Database, after: tuple[int, int], count: int) -> list[tuple[int, int, int]]:
    """Time of use, id and size of the artifacts behind one, the longest unused first."""

    def select(connection: apsw.Connection) -> list[tuple[int, int, int]]:
        return [
            (int(at), int(number), int(size))
            for at, number, size in connection.execute(BY_USE, (*after, count))
        ]

    return await database.read(select)


async def artifacts_under(database: Database, prefix: str, count: int) -> AsyncIterator[list[Listed]]:
    """The artifacts whose keys begin with the prefix, in the order of their keys."""
    after = prefix
    while rows := await database.read(
        lambda connection, behind=after: [  # type: ignore[misc]  # mypy infers no type for a default
            Listed(*row) for row in connection.execute(UNDER, (behind, prefix + LAST, count))
        ]
    ):
        yield rows
        after = rows[-1].key


async def count_key_values(database: Database, prefix: str, unused_since: int) -> int:
    """Key values whose row keys begin so, and that nobody asked for since (microseconds since the epoch)."""
    bounds = (prefix, prefix + LAST, unused_since)
    return await database.read(lambda connection: int(str(connection.execute(COUNT_KEY_VALUES, bounds).get)))


async def delete_key_values(database: Database, prefix: str, unused_since: int) -> int:
    """Deletes a slice of them; answers how many that were. Committed on return."""

    def delete(connection: apsw.Connection) -> int:
        with transaction(connection):
            connection.execute(DELETE_KEY_VALUES, (prefix, prefix + LAST, unused_since, DELETE_ROWS))
            return connection.changes()

    return await database.write(delete)


BY_USE = """
SELECT last_accessed_at, id, size_bytes FROM cache_artifacts WHERE (last_accessed_at, id) > (?, ?)
ORDER BY last_accessed_at, id LIMIT ?
"""

UNDER = """
SELECT key, size_bytes, last_accessed_at FROM cache_artifacts WHERE key > ? AND key < ? ORDER BY key LIMIT ?
"""

COUNT_KEY_VALUES = """
SELECT count(*) FROM key_value_entries
WHERE key >= ? AND key < ? AND coalesce(last_accessed_at, updated_at) <= ?
"""

DELETE_KEY_VALUES = """
DELETE FROM key_value_entries WHERE id IN (
    SELECT id FROM key_value_entries
    WHERE key >= ? AND key < ? AND coalesce(last_accessed_at, updated_at) <= ? LIMIT ?
)
"""

"""Until when what was written belongs to a request, if a clock that was ahead gave some of it its time."""

import apsw

from undercroft.clock import now_us
from undercroft.database import Database
from undercroft.errors import DataDirectoryError
from undercroft.storage.layout import key_value_key
from undercroft.workers.clean_stages import end_of

# What was used last. What has a time to come is among it.
SAMPLE_ROWS = 1_000


async def newest_write(key_values: Database, node: Database, account: str, project: str) -> int:
    """The last of the times to come at which something of the project was written; 0 if there is none.

    In microseconds since the epoch. There is no index for it, so the rows of a project are looked
    through, off the event loop, only if a database has any row with a time to come. Raises
    `DataDirectoryError`.
    """
    prefixes = key_value_key(account, project, ""), f"{account}/{project}/"
    return max(
        await _newest(key_values, SAMPLED_KEY_VALUES, NEWEST_KEY_VALUE, prefixes[0]),
        await _newest(node, SAMPLED_ARTIFACTS, NEWEST_ARTIFACT, prefixes[1]),
    )


async def _newest(database: Database, sampled: str, newest: str, prefix: str) -> int:
    def ask(connection: apsw.Connection) -> int:
        if (connection.execute(sampled, (SAMPLE_ROWS,)).get or 0) <= now:
            return 0
        return connection.execute(newest, (prefix, end_of(prefix))).get or 0

    now = now_us()
    try:
        return await database.read(ask)
    except apsw.Error as error:
        raise DataDirectoryError(f"cannot read {database.path} ({error})") from error


SAMPLED_KEY_VALUES = """
SELECT max(at) FROM (
    SELECT max(coalesce(last_accessed_at, 0), updated_at) AS at FROM key_value_entries
    ORDER BY last_accessed_at DESC LIMIT ?
)
"""

NEWEST_KEY_VALUE = "SELECT max(updated_at) FROM key_value_entries WHERE key > ? AND key < ?"

SAMPLED_ARTIFACTS = """
SELECT max(at) FROM (
    SELECT max(last_accessed_at, updated_at, inserted_at) AS at FROM cache_artifacts
    ORDER BY last_accessed_at DESC LIMIT ?
)
"""

NEWEST_ARTIFACT = """
SELECT max(coalesce(stored_at, inserted_at)) FROM cache_artifacts WHERE key > ? AND key < ?
"""

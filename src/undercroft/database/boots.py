"""Since when the node runs in this boot of the machine: what was written later was never without power."""

import apsw

from undercroft.clock import now_us
from undercroft.database.connection import Database, transaction


async def first_start(database: Database, boot_id: str, started_at: int) -> int:
    """When the node first started in this boot, in microseconds since the epoch.

    That is `started_at`, the start of this process, unless an earlier one in the same boot was
    remembered. In a new boot it is never before anything an earlier boot wrote down: a clock that comes
    up in the past must not make old files look young. Raises `apsw.Error`; writes only what is new.
    """
    known = await database.read(lambda connection: _known(connection, boot_id))
    if known is not None:
        return known
    return await database.write(lambda connection: _remember(connection, boot_id, started_at))


def _known(connection: apsw.Connection, boot_id: str) -> int | None:
    row = connection.execute(SELECT, (boot_id,)).fetchone()
    return None if row is None else int(row[0])


def _remember(connection: apsw.Connection, boot_id: str, started_at: int) -> int:
    with transaction(connection):
        known = _known(connection, boot_id)
        if known is not None:  # another process was quicker
            return known
        last_word = connection.execute(LAST_WORD).get
        if last_word is not None and last_word >= started_at:
            started_at = max(now_us(), last_word + 1)
        connection.execute(REMEMBER, (boot_id, started_at))
    return started_at


SELECT = "SELECT first_started_at FROM boots WHERE boot_id = ?"

LAST_WORD = """
SELECT max(at) FROM (
    SELECT first_started_at AS at FROM boots UNION ALL SELECT max(updated_at) FROM cursors
)
"""

REMEMBER = """
INSERT INTO boots (id, boot_id, first_started_at) VALUES (1, ?1, ?2)
ON CONFLICT (id) DO UPDATE SET boot_id = ?1, first_started_at = ?2
"""

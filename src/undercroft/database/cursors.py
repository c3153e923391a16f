"""How far work has come that goes through everything in slices, so that a restart does not begin again."""

import apsw

from undercroft.clock import now_us
from undercroft.database.connection import Database, transaction


class Cursors:
    """Positions by the name of the work. What a position means is known to the work alone.

    Every method raises `apsw.Error`, and `ClosedError` when the database is closed.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self, name: str) -> str | None:
        """The position saved last; None if there is none."""

        def select(connection: apsw.Connection) -> str | None:
            row = connection.execute(SELECT, (name,)).fetchone()
            return None if row is None else str(row[0])

        return await self._database.read(select)

    async def save(self, name: str, position: str) -> None:
        """Keeps a position in the place of the last one. A transaction of its own: not for every step."""
        await self._write(SAVE, name, position, now_us())

    async def clear(self, name: str) -> None:
        """Forgets the position: the next time begins at the beginning. Idempotent."""
        await self._write(CLEAR, name)

    async def _write(self, sql: str, *values: "apsw.SQLiteValue") -> None:
        def write(connection: apsw.Connection) -> None:
            with transaction(connection):
                connection.execute(sql, values)

        await self._database.write(write)


class NoCursors(Cursors):
    """For work that goes through everything once, beside somebody who keeps a cursor under the same name."""

    def __init__(self) -> None:
        pass

    async def load(self, _name: str) -> None:
        """Always the beginning."""

    async def save(self, _name: str, _position: str) -> None:
        """Keeps nothing."""

    async def clear(self, _name: str) -> None:
        """There is nothing to forget."""


SELECT = "SELECT position FROM cursors WHERE name = ?"

SAVE = """
INSERT INTO cursors (name, position, updated_at) VALUES (?1, ?2, ?3)
ON CONFLICT (name) DO UPDATE SET position = ?2, updated_at = ?3
"""

CLEAR = "DELETE FROM cursors WHERE name = ?"

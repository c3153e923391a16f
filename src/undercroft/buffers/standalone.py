"""A buffer with all it needs around it, for programs that are not the node."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import apsw

from undercroft.buffers.bufferable import Bufferable
from undercroft.buffers.settings import BufferSettings
from undercroft.buffers.sqlite_buffer import SQLiteBuffer
from undercroft.database import Database, transaction
from undercroft.errors import DatabaseLockedError
from undercroft.supervisor import Supervisor
from undercroft.telemetry.events import Events

StateT = TypeVar("StateT")
EventT = TypeVar("EventT")


class OpenBuffer(SQLiteBuffer[StateT, EventT]):
    """A buffer that also reads."""

    async def read(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query, of what is committed. Raises `apsw.Error`.

        Never read the file by the `sqlite3` of Python in the same process: that is another copy of SQLite,
        and locks of a process do not keep its own copies apart. One that closes the file takes the locks of
        the other along, and what that commits is lost (https://www.sqlite.org/howtocorrupt.html, 2.2.1).
        """
        return await self._database.read(lambda connection: connection.execute(sql, values).fetchall())


@asynccontextmanager
async def open_buffer(
    path: Path,
    table: Bufferable[StateT, EventT],
    *,
    create: str = "",
    settings: BufferSettings | None = None,
    telemetry: Events | None = None,
) -> AsyncIterator[OpenBuffer[StateT, EventT]]:
    """A buffer for one table of the SQLite file at `path`, on the running event loop.

    `create` is SQL that makes the table if it is not there (`CREATE TABLE IF NOT EXISTS ...`). On leaving,
    everything that was accepted is committed within `settings.shutdown_ms`, or spilled to a file beside the
    database that the next `open_buffer` replays. `telemetry` is told what happens (`telemetry/events.py`).

    Opening blocks for a moment, and sets the file to WAL mode. Raises `DatabaseLockedError`,
    `DataDirectoryError`, `apsw.Error` for wrong SQL, also that of the table; on leaving OSError, if rows
    could be neither committed nor spilled, and what a method of the table raised.
    """
    database = Database(path, None)
    database.open()
    try:
        try:
            await database.write(lambda connection: _prepare(connection, create, table))
        except apsw.BusyError as error:
            raise DatabaseLockedError(f"{path} is locked by another process: try again") from error
        # Two databases in a directory may have tables of the same name.
        buffer = OpenBuffer(
            table, database, telemetry or Events(), settings, stem=f"{path.name}.{table.buffer_name}"
        )
        await buffer.open()
        supervisor = Supervisor()
        supervisor.start(f"buffer {buffer.name}", buffer.run())
        try:
            yield buffer
        finally:
            supervisor.expect_end()
            await buffer.close()
            await supervisor.stop()
    finally:
        await database.close()


def _prepare(connection: apsw.Connection, create: str, table: Bufferable[Any, Any]) -> None:
    if create:
        with transaction(connection):
            connection.execute(create).fetchall()
    # Of nothing, and undone: a mistake in a statement is told here, and not by rows that are never committed.
    connection.execute("BEGIN")
    try:
        for operation in table.entry_types:
            table.write_batch(connection, operation, [])
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")

"""A buffer with all it needs around it, for programs that are not the node."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import apsw

from undercroft.buffers.bufferable import Bufferable
from undercroft.buffers.settings import BufferSettings
from undercroft.buffers.sqlite_buffer import SQLiteBuffer
from undercroft.database import Database, transaction
from undercroft.supervisor import Supervisor
from undercroft.telemetry.events import Events

StateT = TypeVar("StateT")
EventT = TypeVar("EventT")


@asynccontextmanager
async def open_buffer(
    path: Path,
    table: Bufferable[StateT, EventT],
    *,
    create: str = "",
    settings: BufferSettings | None = None,
    telemetry: Events | None = None,
) -> AsyncIterator[SQLiteBuffer[StateT, EventT]]:
    """A buffer for one table of the SQLite file at `path`, on the running event loop.

    `create` is SQL that makes the table if it is not there (`CREATE TABLE IF NOT EXISTS ...`). On leaving,
    everything that was accepted is committed within `settings.shutdown_ms`, or spilled to a file beside the
    database that the next `open_buffer` replays. `telemetry` is told what happens (`telemetry/events.py`).

    Opening blocks for a moment, and sets the file to WAL mode. Raises `DatabaseLockedError`,
    `DataDirectoryError`, `apsw.Error` for wrong SQL; on leaving OSError, if rows could be neither
    committed nor spilled, and what a method of the table raised.
    """
    database = Database(path, None)
    database.open()
    try:
        await database.write(lambda connection: _execute(connection, create))
        buffer = SQLiteBuffer(table, database, telemetry or Events(), settings)
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


def _execute(connection: apsw.Connection, sql: str) -> None:
    if sql:
        with transaction(connection):
            connection.execute(sql).fetchall()

"""A buffer with everything around it, opened, broken and closed by tests."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.faulty_table import FaultyTable
from tests.support.recorded_events import RecordedEvents
from undercroft.buffers import BufferSettings, SQLiteBuffer, Ticket
from undercroft.database import Database
from undercroft.telemetry import events

from .drivers import Driver

# No flush by the timer unless a test wants it; retries without noticeable delays.
QUIET = {
    "flush_interval_ms": 3_600_000,
    "retry_base_delay_ms": 1,
    "retry_max_delay_ms": 4,
    "retry_max_attempts": 3,
    "commit_timeout_ms": 20_000,
    "shutdown_ms": 20_000,
}


class Rig:
    """One table's buffer over a file of its own, with its `run` as a task."""

    def __init__(self, driver: Driver, folder: Path, **settings: int) -> None:
        self.driver = driver
        self.path = folder / f"{driver.schema.name}.sqlite"
        self.telemetry = RecordedEvents()
        self.table = FaultyTable(driver.make_table())
        self.database = Database(self.path, driver.schema)
        self.buffer: SQLiteBuffer[Any, Any] = SQLiteBuffer(
            self.table.as_table, self.database, self.telemetry, BufferSettings(**{**QUIET, **settings})
        )
        self.runner: asyncio.Task[None] | None = None

    async def open(self) -> "Rig":
        await self.open_database()
        await self.buffer.open()
        self.runner = asyncio.create_task(self.buffer.run())
        return self

    async def open_database(self) -> None:
        self.database.open()
        # A lock of another connection shows at once; how long SQLite itself waits is not the subject.
        await self.database.write(lambda connection: connection.set_busy_timeout(0))
        await self.database.write(self.driver.prepare)

    @property
    def running(self) -> "asyncio.Task[None]":
        assert self.runner is not None
        return self.runner

    def rows(self) -> dict[str, int]:
        return self.driver.rows(self.path)

    def enqueue(self, key: str, version: int = 1) -> Ticket:
        return self.buffer.enqueue_nowait(self.driver.write(key, version))

    async def commit(self, key: str, version: int = 1) -> None:
        await self.buffer.committed(self.enqueue(key, version))

    async def flush_in_vain(self, attempts: int = 1) -> None:
        """Returns when a flush has failed, after so many attempts, and its rows are back."""
        attempts += self.telemetry.count(events.STALLED)
        flush = asyncio.create_task(self.buffer.flush())
        await self.telemetry.wait_for(events.STALLED, attempts)
        assert not flush.done()
        flush.cancel()
        with suppress(asyncio.CancelledError):
            await flush

    def pending(self, key: str) -> int | None:
        """The version that uncommitted events give the row."""
        found = self.buffer.pending(self.driver.row_key(key))
        return None if found is None else self.driver.version_of(found)

    async def arrived(self) -> None:
        """Returns when a batch stands at the gate."""
        await asyncio.to_thread(self.table.wait_until_arrived)

    async def close(self) -> None:
        """As the node does it: buffer, its task, database."""
        await self.buffer.close()
        await self.running
        await self.database.close()

    async def crash(self) -> None:
        """Ends as SIGKILL would, but for work that is in the writer's thread already."""
        if self.runner is not None:
            self.runner.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self.runner
        self.table.open_gate()
        await self.database.close()

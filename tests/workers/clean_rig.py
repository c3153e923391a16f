"""Cleaning over real databases and files, and an object store in memory with a clock of its own."""

import asyncio
import builtins
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw

from tests.support.artifact_rig import QUIET, ArtifactRig
from tests.support.faulty_table import FaultyTable
from tests.support.memory_store import MemoryStore
from tests.support.served_node import PATIENCE_S
from undercroft.buffers import SQLiteBuffer
from undercroft.buffers.key_values import KeyValueBuffer, KeyValueEvent, KeyValueState
from undercroft.database import Database
from undercroft.database.schema import KEY_VALUES
from undercroft.key_values import KeyValueStore
from undercroft.s3.object_store import ObjectStore, RemoteObject
from undercroft.workers.clean_jobs import CleanJob
from undercroft.workers.clean_project import CleanProject, CleanTarget

PROJECT = ("acc", "proj")
SECOND_US = 1_000_000


async def nothing() -> None:
    """Happens."""


class Bucket(MemoryStore):
    """A store whose clock has nothing to do with ours."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 5 * SECOND_US + 1
        self.while_deleting: Callable[[], Awaitable[None]] = nothing
        """What happens between the decision to delete and the deed."""
        self.head_knows_seconds_only = False

    def keep(self, key: str, data: bytes, content_sha256: str | None = None) -> None:
        super().keep(key, data, content_sha256)
        self.now += 1
        stored = self.objects[key]
        stored.described = stored.described._replace(modified_at=self.now)

    def put_now(self, *keys: str) -> None:
        """As if another node had put them."""
        for key in keys:
            self.keep(key, b"bytes")

    async def head(self, key: str) -> RemoteObject | None:
        found = await super().head(key)
        if found is None or not self.head_knows_seconds_only:
            return found
        return found._replace(modified_at=found.modified_at - found.modified_at % SECOND_US)

    async def delete(self, keys: Sequence[str]) -> None:
        await self.while_deleting()
        await super().delete(keys)

    async def list(self, prefix: str) -> AsyncIterator[list[RemoteObject]]:
        # Not the end. And more than was asked for: what is deleted must not rest on how a prefix is read.
        yield []
        async for page in super().list(""):
            yield page

    @property
    def puts(self) -> "builtins.list[str]":
        return [key for operation, key in self.asked if operation == "put"]


class CleanRig(ArtifactRig):
    """All that is cleaned, in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, uploads=True)
        self.key_value_table = FaultyTable(KeyValueBuffer())
        self.key_value_database = Database(folder / "key_values.sqlite", KEY_VALUES)
        self.key_value_buffer: SQLiteBuffer[KeyValueState, KeyValueEvent] = SQLiteBuffer(
            self.key_value_table.as_table, self.key_value_database, self.telemetry, QUIET
        )
        self.key_values = KeyValueStore(self.key_value_database, self.key_value_buffer, "buffered")
        self.bucket = Bucket()

    async def open(self) -> "CleanRig":
        self.key_value_database.open()
        await super().open()
        await self.key_value_buffer.open()
        self.runners.append(asyncio.create_task(self.key_value_buffer.run()))
        return self

    async def close(self) -> None:
        self.key_value_table.open_gate()
        await self.key_value_buffer.close()
        await super().close()
        await self.key_value_database.close()

    def cleaner(self, store: ObjectStore | None = None, **options: Any) -> CleanProject:
        """A new one, as after a start; `open` it."""
        target = CleanTarget(
            self.key_value_database,
            self.database,
            self.key_values,
            self.artifacts,
            self.disk,
            self.transfers,
            store,
            options.pop("in_work", None),
        )
        # A failed job is not tried again by the same one, unless a test says so.
        return CleanProject(target, self.telemetry, **{"first_retry_s": 3_600} | options)

    # --- acting ---

    async def put_values(self, *keys: str, value: str = "v") -> None:
        """Written and committed."""
        for key in keys:
            await self.key_values.put(key, value)
        await self.key_values.flush()

    def execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """On a connection of another process."""
        return run_sql(self.database.path, sql, *values)

    # --- looking ---

    def values(self) -> list[str]:
        """Keys in the table."""
        sql = "SELECT key FROM key_value_entries ORDER BY key"
        return [key for (key,) in run_sql(self.key_value_database.path, sql)]

    def artifact_keys(self) -> list[str]:
        """Keys in the table."""
        return sorted(self.rows())

    def queued(self) -> list[tuple[str, str]]:
        """Type and key of the transfers in the table."""
        return [(kind, key) for kind, key in self.execute("SELECT type, key FROM s3_transfers ORDER BY key")]


def run_sql(path: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(10_000)
    try:
        return list(connection.execute(sql, values))
    finally:
        connection.close()


def progress(job: CleanJob | None) -> tuple[int, int, int, int]:
    assert job is not None
    return job.key_values, job.artifacts, job.transfers, job.objects


async def until(condition: Callable[[], object]) -> None:
    """Returns when the condition holds, for which nothing has an event."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def drop(task: "asyncio.Task[Any]") -> None:
    """Ends a worker wherever it is."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task

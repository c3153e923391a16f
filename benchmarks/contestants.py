"""Ours and its peers behind one interface: commit these rows, say when all of them are in.

Each peer is set up in its own favour: the same table, WAL, synchronous NORMAL and page cache as
ours, its rows already in the shape it wants, batches already gathered, everything in as few
hand-overs between threads as it allows.
"""

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import aiosqlite
import diskcache
import sqlalchemy
from peewee import EXCLUDED, Table
from playhouse.sqliteq import SqliteQueueDatabase
from sqlalchemy.dialects import sqlite

from benchmarks.load import Row
from undercroft.buffers import SQLiteBuffer
from undercroft.buffers.key_values import KeyValueBuffer, KeyValueEvent, KeyValueState, KeyValueWrite
from undercroft.clock import now_us
from undercroft.database import Database
from undercroft.database.schema import KEY_VALUES, migrations
from undercroft.telemetry.events import Events

T = TypeVar("T")

BATCH = 1_000
PRODUCERS = 64
YIELD_EVERY = 100
FILE = "key_values.sqlite"

PRAGMAS = {"journal_mode": "wal", "synchronous": "normal", "cache_size": -65_536, "temp_store": "memory"}

COLUMNS = ("key", "json_payload", "last_accessed_at", "inserted_at", "updated_at")
UPSERT = f"""
INSERT INTO key_value_entries ({", ".join(COLUMNS)}) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET json_payload = excluded.json_payload,
    last_accessed_at = excluded.last_accessed_at, updated_at = excluded.updated_at
"""


class Contestant(Protocol):
    """One way to get rows into SQLite. `prepare` and `close` are not measured, `write` is."""

    title: ClassVar[str]

    def __init__(self, folder: Path) -> None: ...

    async def open(self) -> None:
        """Opens the database in the folder."""
        ...

    def prepare(self, rows: Sequence[Row]) -> Any:
        """The rows in the shape `write` wants them in."""
        ...

    async def write(self, rows: Any, deadline: float) -> None:
        """Returns when every row is committed; takes no further ones after `deadline` (perf_counter)."""
        ...

    async def close(self) -> int:
        """Closes the database; answers how many rows are in it."""
        ...


def until(deadline: float, items: Iterable[T]) -> Iterator[T]:
    """The items, but none after the deadline."""
    return itertools.takewhile(lambda _: time.perf_counter() < deadline, items)


def in_batches(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cuts rows as the strong forms of the peers want them."""
    return (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))


# --- ours -----------------------------------------------------------------------------------------


class Ours:
    """Rows enqueued by one producer, then `flush`.

    It gives way after as many as the others hand over at once: where a turn of the loop takes long, how
    many turns a contestant is given would be compared otherwise.
    """

    title: ClassVar[str] = "Undercroft, enqueue and flush"

    def __init__(self, folder: Path) -> None:
        self._database = Database(folder / FILE, KEY_VALUES)
        self._buffer: SQLiteBuffer[KeyValueState, KeyValueEvent] | None = None
        self._runner: asyncio.Task[None] | None = None

    @property
    def buffer(self) -> SQLiteBuffer[KeyValueState, KeyValueEvent]:
        """The open buffer."""
        assert self._buffer is not None
        return self._buffer

    async def open(self) -> None:
        """Opens database and buffer with the node's default settings."""
        self._database.open()
        self._buffer = SQLiteBuffer(KeyValueBuffer(), self._database, Events())
        await self._buffer.open()
        self._runner = asyncio.create_task(self._buffer.run())

    def prepare(self, rows: Sequence[Row]) -> Sequence[Row]:
        """As they are: making the event is part of the cost."""
        return rows

    async def write(self, rows: Sequence[Row], deadline: float) -> None:
        """Enqueues everything, then waits for the commit of all."""
        for number, (key, payload) in enumerate(until(deadline, rows)):
            await self.buffer.enqueue(KeyValueWrite(key, payload))
            if number % BATCH == 0:
                await asyncio.sleep(0)
        await self.buffer.flush()

    async def close(self) -> int:
        """Drains and closes."""
        await self.buffer.close()
        assert self._runner is not None
        await self._runner
        await self._database.close()
        return count_rows(self._database.path)


class OursAcknowledged(Ours):
    """64 producers, each waiting for the commit of its row before it sends the next."""

    title: ClassVar[str] = "Undercroft, each row awaited"

    async def write(self, rows: Sequence[Row], deadline: float) -> None:
        """Every producer takes the next row as soon as its last one is committed."""
        waiting = until(deadline, rows)
        await asyncio.gather(*(self._produce(waiting) for _ in range(PRODUCERS)))

    async def _produce(self, waiting: Iterator[Row]) -> None:
        for key, payload in waiting:
            ticket = await self.buffer.enqueue(KeyValueWrite(key, payload))
            await self.buffer.committed(ticket)


# --- peers on our table ---------------------------------------------------------------------------


def create_table(path: Path) -> None:
    """Makes the file with the table and indexes of ours."""
    connection = connect(path)
    connection.executescript("".join(migrations(KEY_VALUES)))
    connection.close()


def connect(path: Path) -> sqlite3.Connection:
    """A stdlib connection with the PRAGMAs every peer gets, for any thread."""
    connection = sqlite3.connect(path, check_same_thread=False)
    for name, value in PRAGMAS.items():
        connection.execute(f"PRAGMA {name} = {value}")
    return connection


def count_rows(path: Path) -> int:
    """How many rows really are in the table."""
    connection = sqlite3.connect(path)
    (count,) = connection.execute("SELECT count(*) FROM key_value_entries").fetchone()
    connection.close()
    return int(count)


def as_tuples(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Rows with their three times, ready to bind."""
    now = now_us()
    return [(*row, now, now, now) for row in rows]


class StdlibExecutemany:
    """`sqlite3` in a thread: `executemany` of 1000 rows, a transaction each."""

    title: ClassVar[str] = "sqlite3 executemany in a thread"

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    async def open(self) -> None:
        """Connects."""
        create_table(self._path)
        self._connection = connect(self._path)

    def prepare(self, rows: Sequence[Row]) -> list[Sequence[tuple[Any, ...]]]:
        """Batches of tuples."""
        return list(in_batches(as_tuples(rows)))

    async def write(self, rows: list[Sequence[tuple[Any, ...]]], deadline: float) -> None:
        """One stay in the thread for all batches."""
        await asyncio.to_thread(self._write, rows, deadline)

    def _write(self, batches: list[Sequence[tuple[Any, ...]]], deadline: float) -> None:
        for batch in until(deadline, batches):
            self._connection.executemany(UPSERT, batch)
            self._connection.commit()

    async def close(self) -> int:
        """Closes."""
        self._connection.close()
        return count_rows(self._path)


class AiosqliteEach:
    """aiosqlite as its documentation writes it: `execute` and `commit` for every row."""

    title: ClassVar[str] = "aiosqlite execute + commit per row"

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    async def open(self) -> None:
        """Connects."""
        create_table(self._path)
        self._connection = await aiosqlite.connect(self._path)
        for name, value in PRAGMAS.items():
            await self._connection.execute(f"PRAGMA {name} = {value}")

    def prepare(self, rows: Sequence[Row]) -> list[Any]:
        """Tuples."""
        return as_tuples(rows)

    async def write(self, rows: list[Any], deadline: float) -> None:
        """One commit a row."""
        for row in until(deadline, rows):
            await self._connection.execute(UPSERT, row)
            await self._connection.commit()

    async def close(self) -> int:
        """Closes."""
        await self._connection.close()
        return count_rows(self._path)


class AiosqliteExecutemany(AiosqliteEach):
    """aiosqlite with batches of 1000 gathered for it."""

    title: ClassVar[str] = "aiosqlite executemany"

    def prepare(self, rows: Sequence[Row]) -> list[Any]:
        """Batches of tuples."""
        return list(in_batches(as_tuples(rows)))

    async def write(self, rows: list[Any], deadline: float) -> None:
        """One commit a batch."""
        for batch in until(deadline, rows):
            await self._connection.executemany(UPSERT, batch)
            await self._connection.commit()


class PeeweeQueue:
    """`SqliteQueueDatabase` with a write per row: the raw statement, nobody waits but for the last."""

    title: ClassVar[str] = "peewee SqliteQueueDatabase per row"

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    async def open(self) -> None:
        """Starts its writer thread."""
        create_table(self._path)
        self._database: Any = SqliteQueueDatabase(str(self._path), pragmas=dict(PRAGMAS))

    def prepare(self, rows: Sequence[Row]) -> list[tuple[Any, ...]]:
        """Tuples."""
        return as_tuples(rows)

    async def write(self, rows: Any, deadline: float) -> None:
        """Into its queue, giving way as ours does; the last cursor stands for all before it."""
        cursor: Any = None
        for number, row in enumerate(until(deadline, rows)):
            cursor = self._database.execute_sql(UPSERT, row)
            if number % BATCH == 0:
                await asyncio.sleep(0)
        await asyncio.to_thread(lambda: cursor.rowcount)

    async def close(self) -> int:
        """Stops the writer thread."""
        await asyncio.to_thread(self._database.stop)
        self._database.close()
        return count_rows(self._path)


class PeeweeInsertMany(PeeweeQueue):
    """`insert_many` of 1000 rows, which peewee makes one statement of, built in a thread."""

    title: ClassVar[str] = "peewee SqliteQueueDatabase insert_many"

    def prepare(self, rows: Sequence[Row]) -> Any:
        """Batches of tuples."""
        return list(in_batches(as_tuples(rows)))

    async def write(self, rows: Any, deadline: float) -> None:
        """One stay in a thread, which only waits for the last batch."""
        await asyncio.to_thread(self._write, rows, deadline)

    def _write(self, batches: Any, deadline: float) -> None:
        table: Any = Table("key_value_entries", ("id", *COLUMNS)).bind(self._database)
        columns = [getattr(table, name) for name in COLUMNS]
        update = {getattr(table, c): getattr(EXCLUDED, c) for c in COLUMNS if c not in ("key", "inserted_at")}
        cursor: Any = None
        for batch in until(deadline, batches):
            insert = table.insert(batch, columns=columns)
            insert = insert.on_conflict(conflict_target=[table.key], update=update)
            cursor = self._database.execute(insert)
        _ = cursor.rowcount


KEY_VALUE_TABLE = sqlalchemy.Table(
    "key_value_entries",
    sqlalchemy.MetaData(),
    sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True),
    sqlalchemy.Column("key", sqlalchemy.Text, unique=True),
    sqlalchemy.Column("json_payload", sqlalchemy.Text),
    *(sqlalchemy.Column(name, sqlalchemy.Integer) for name in COLUMNS[2:]),
)


class SQLAlchemyExecutemany:
    """SQLAlchemy Core in a thread: `insert … on conflict` over lists of 1000 dictionaries."""

    title: ClassVar[str] = "SQLAlchemy Core executemany in a thread"

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    async def open(self) -> None:
        """Makes an engine whose connections carry the PRAGMAs."""
        create_table(self._path)
        self._engine = sqlalchemy.create_engine("sqlite://", creator=lambda: connect(self._path))

    def prepare(self, rows: Sequence[Row]) -> list[list[dict[str, Any]]]:
        """Batches of dictionaries."""
        return [
            [dict(zip(COLUMNS, row, strict=True)) for row in batch] for batch in in_batches(as_tuples(rows))
        ]

    async def write(self, rows: list[list[dict[str, Any]]], deadline: float) -> None:
        """One stay in the thread for all batches."""
        await asyncio.to_thread(self._write, rows, deadline)

    def _write(self, batches: list[list[dict[str, Any]]], deadline: float) -> None:
        statement = self._upsert(sqlite.insert(KEY_VALUE_TABLE))
        for batch in until(deadline, batches):
            with self._engine.begin() as connection:
                connection.execute(statement, batch)

    def _upsert(self, insert: sqlite.Insert) -> sqlite.Insert:
        changed = {name: insert.excluded[name] for name in COLUMNS if name not in ("key", "inserted_at")}
        return insert.on_conflict_do_update(index_elements=["key"], set_=changed)

    async def close(self) -> int:
        """Closes all connections."""
        self._engine.dispose()
        return count_rows(self._path)


class SQLAlchemyValues(SQLAlchemyExecutemany):
    """SQLAlchemy Core in a thread, 1000 rows to one VALUES list."""

    title: ClassVar[str] = "SQLAlchemy Core one VALUES list in a thread"

    def _write(self, batches: list[list[dict[str, Any]]], deadline: float) -> None:
        for batch in until(deadline, batches):
            with self._engine.begin() as connection:
                connection.execute(self._upsert(sqlite.insert(KEY_VALUE_TABLE).values(batch)))


# --- diskcache ------------------------------------------------------------------------------------


class DiskcacheSet:
    """`Cache.set` in a thread, a transaction each, nothing culled."""

    title: ClassVar[str] = "diskcache set per row in a thread"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def open(self) -> None:
        """Its own table; WAL and synchronous NORMAL are its defaults."""
        self._cache: Any = diskcache.Cache(
            str(self._folder), size_limit=1 << 40, cull_limit=0, sqlite_cache_size=1 << 14
        )

    def prepare(self, rows: Sequence[Row]) -> list[Row]:
        """As they are."""
        return list(rows)

    async def write(self, rows: list[Row], deadline: float) -> None:
        """One stay in the thread for all rows."""
        await asyncio.to_thread(self._write, rows, deadline)

    def _write(self, rows: list[Row], deadline: float) -> None:
        for key, payload in until(deadline, rows):
            self._cache.set(key, payload)

    async def close(self) -> int:
        """Closes."""
        count = len(self._cache)
        self._cache.close()
        return count


class DiskcacheTransact(DiskcacheSet):
    """1000 `Cache.set` to a transaction."""

    title: ClassVar[str] = "diskcache transact in a thread"

    def _write(self, rows: list[Row], deadline: float) -> None:
        for batch in until(deadline, in_batches(rows)):
            with self._cache.transact():
                super()._write(list(batch), float("inf"))

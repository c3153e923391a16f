"""The writer thread, the readers, checkpoints, locks, and that closing leaves nothing behind."""

import asyncio
import errno
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import apsw
import pytest
from structlog.testing import capture_logs

from tests.support.leaks import database_threads, open_files
from tests.support.locks import lock_of_another_connection, lock_of_another_process
from undercroft.api.health import database_check
from undercroft.database import Database, transaction, upkeep
from undercroft.database import connection as connections
from undercroft.database.connection import DAMAGED, PRAGMAS, open_connection
from undercroft.database.schema import KEY_VALUES
from undercroft.errors import ClosedError, DatabaseLockedError, DataDirectoryError

PATIENCE_SECONDS = 20

NICEST = 19
"""As nice as a thread can be (man 2 setpriority)."""


@pytest.fixture(params=[2, 8], ids=["two processors", "eight processors"])
async def database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Database]:
    monkeypatch.setattr(connections, "processors", lambda: request.param)
    database = Database(tmp_path / "key_values.sqlite", KEY_VALUES)
    database.open()
    yield database
    await database.close()


def insert(connection: apsw.Connection, key: str, payload: str = "[]") -> None:
    sql = "INSERT INTO key_value_entries (key, json_payload, inserted_at, updated_at) VALUES (?, ?, 1, 1)"
    with transaction(connection):
        connection.execute(sql, (key, payload))


def count(database: Database) -> int:
    found = database.find("SELECT count(*) FROM key_value_entries")
    assert found is not None
    return int(found[0])


def wal_bytes(database: Database) -> int:
    return database.path.with_name(database.path.name + "-wal").stat().st_size


async def checkpoints_made(database: Database) -> None:
    """Returns when none is due any more; what the checkpointer asks of the writer comes after its own."""
    for thread in (database._checkpointer, database._writer):
        await thread.run(lambda _: None)


# --- PRAGMAs ---


@pytest.mark.parametrize(("name", "value", "reason"), PRAGMAS)
async def test_every_pragma_holds_on_the_live_connections(
    database: Database, name: str, value: str | int, reason: str
) -> None:
    assert await database.write(lambda connection: connection.pragma(name)) == value
    assert await database.read(lambda connection: connection.pragma(name)) == value
    assert reason


async def test_synchronous_is_normal_or_as_told(tmp_path: Path, database: Database) -> None:
    assert await database.write(lambda connection: connection.pragma("synchronous")) == 1
    full = Database(tmp_path / "full.sqlite", KEY_VALUES, synchronous="FULL")
    full.open()
    assert await full.write(lambda connection: connection.pragma("synchronous")) == 2
    await full.close()


async def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises(apsw.ReadOnlyError):
        await database.read(lambda connection: insert(connection, "a"))
    with pytest.raises(apsw.ReadOnlyError):
        database.find("DELETE FROM key_value_entries")


# --- the writer ---


async def test_work_is_done_in_order_in_one_thread(database: Database) -> None:
    done: list[tuple[int, str]] = []

    def work(n: int) -> None:
        done.append((n, threading.current_thread().name))

    await asyncio.gather(*(database.write(lambda _, n=n: work(n)) for n in range(200)))  # type: ignore[misc]
    assert done == [(n, "key_values-writer") for n in range(200)]


async def test_who_asks_goes_before_what_is_written_and_that_before_what_is_copied(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []

    def copy(_connection: apsw.Connection) -> int:
        copied.append(niceness())
        return 0

    def niceness(*_: object) -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    own = os.getpriority(os.PRIO_PROCESS, 0)
    monkeypatch.setattr(connections, "copy_wal", copy)
    await database.truncate_wal()
    assert (await database.read(niceness), await database.write(niceness), *copied) == (
        own,
        min(own + 5, NICEST),
        min(own + 10, NICEST),
    )


async def test_an_idle_writer_keeps_nothing_of_what_it_wrote(database: Database) -> None:
    class Rows:
        def write(self, _connection: apsw.Connection) -> None: ...

    loop, freed = asyncio.get_running_loop(), asyncio.Event()
    rows = Rows()
    weakref.finalize(rows, loop.call_soon_threadsafe, freed.set)
    await database.write(rows.write)
    del rows
    async with asyncio.timeout(PATIENCE_SECONDS):
        await freed.wait()


async def test_what_the_function_raises_reaches_the_caller(database: Database) -> None:
    with pytest.raises(apsw.SQLError, match="nowhere"):
        await database.write(lambda connection: connection.execute("SELECT * FROM nowhere"))
    assert await database.write(lambda _: "next") == "next"


async def test_a_function_that_raises_stop_iteration_does_not_hang_the_caller(database: Database) -> None:
    empty = "SELECT key FROM key_value_entries"
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await database.write(lambda connection: next(connection.execute(empty)))


async def test_a_cancelled_caller_does_not_stop_the_work(database: Database) -> None:
    started, release = threading.Event(), threading.Event()

    def work(connection: apsw.Connection) -> None:
        started.set()
        assert release.wait(PATIENCE_SECONDS)
        insert(connection, "a")

    caller = asyncio.create_task(database.write(work))
    assert await asyncio.to_thread(started.wait, PATIENCE_SECONDS)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    release.set()
    await database.write(lambda _: None)
    assert count(database) == 1


async def test_reading_does_not_wait_for_the_writer(database: Database) -> None:
    await database.write(lambda connection: insert(connection, "before"))
    inside, release = threading.Event(), threading.Event()

    def hold(connection: apsw.Connection) -> None:
        with transaction(connection):
            connection.execute("DELETE FROM key_value_entries")
            inside.set()
            assert release.wait(PATIENCE_SECONDS)

    writing = asyncio.create_task(database.write(hold))
    assert await asyncio.to_thread(inside.wait, PATIENCE_SECONDS)
    assert count(database) == 1
    sql = "SELECT key FROM key_value_entries"
    assert await database.read(lambda connection: connection.execute(sql).fetchall()) == [("before",)]
    release.set()
    await writing
    assert count(database) == 0


async def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    def fail(connection: apsw.Connection) -> None:
        with transaction(connection):
            connection.execute("DELETE FROM key_value_entries")
            raise LookupError

    await database.write(lambda connection: insert(connection, "a"))
    with pytest.raises(LookupError):
        await database.write(fail)
    assert count(database) == 1
    assert not await database.write(lambda connection: connection.in_transaction)


# --- life ---


async def test_close_finishes_what_was_submitted_and_is_idempotent(database: Database) -> None:
    jobs = [
        asyncio.create_task(database.write(lambda c, n=n: insert(c, f"k{n}")))  # type: ignore[misc]
        for n in range(100)
    ]
    await asyncio.sleep(0)
    await asyncio.gather(database.close(), database.close())
    await database.close()
    await asyncio.gather(*jobs)
    connection = open_connection(database.path)
    assert connection.execute("SELECT count(*) FROM key_value_entries").fetchall() == [(100,)]
    connection.close()


async def test_use_after_close(database: Database) -> None:
    await database.close()
    with pytest.raises(ClosedError):
        await database.write(lambda _: None)
    with pytest.raises(ClosedError):
        await database.read(lambda _: None)
    with pytest.raises(ClosedError):
        database.find("SELECT 1")


async def test_use_before_open(tmp_path: Path) -> None:
    database = Database(tmp_path / "key_values.sqlite", KEY_VALUES)
    with pytest.raises(ClosedError):
        await database.write(lambda _: None)
    await database.close()
    assert not database.path.exists()


async def test_closing_empties_the_wal(database: Database) -> None:
    await database.write(lambda connection: insert(connection, "a"))
    assert wal_bytes(database) > 0
    await database.close()
    assert [file.name for file in database.path.parent.iterdir()] == ["key_values.sqlite"]


async def test_opening_and_closing_leaks_neither_files_nor_threads(tmp_path: Path) -> None:
    before = database_threads()
    for _ in range(20):
        database = Database(tmp_path / "key_values.sqlite", KEY_VALUES)
        database.open()
        assert open_files(tmp_path)
        assert len(database_threads()) == len(before) + 3
        await database.write(lambda connection: connection.execute("SELECT 1").fetchall())
        await database.close()
    assert open_files(tmp_path) == []
    assert database_threads() == before


@pytest.mark.parametrize("broken", range(6))
async def test_a_failing_open_leaves_neither_files_nor_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    opened = 0

    def open_some(path: Path, *, synchronous: str = "NORMAL", read_only: bool = False) -> apsw.Connection:
        nonlocal opened
        opened += 1
        if opened > broken:
            raise apsw.exception_for(apsw.SQLITE_CANTOPEN)
        return open_connection(path, synchronous=synchronous, read_only=read_only)

    before = database_threads()
    monkeypatch.setattr(connections, "open_connection", open_some)
    database = Database(tmp_path / "key_values.sqlite", KEY_VALUES)
    if broken < 5:  # to migrate, the point reader, and one for each of three threads
        with pytest.raises(DataDirectoryError):
            database.open()
    else:
        database.open()
        await database.close()
    assert open_files(tmp_path) == []
    assert database_threads() == before
    await database.close()


async def test_any_error_of_a_thread_that_opens_reaches_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Database) -> apsw.Connection:
        raise MemoryError

    monkeypatch.setattr(Database, "_open_writer", fail)
    with pytest.raises(MemoryError):
        Database(tmp_path / "key_values.sqlite", KEY_VALUES).open()
    assert open_files(tmp_path) == []


# --- locks of others ---


async def test_under_the_lock_of_another_process(database: Database) -> None:
    await database.write(lambda connection: insert(connection, "before"))
    with lock_of_another_process(database.path):
        with pytest.raises(apsw.BusyError) as raised:
            await database.write(lambda connection: insert(connection, "a"))
        assert getattr(raised.value, "result", None) == apsw.SQLITE_BUSY
        assert not await database.write(lambda connection: connection.in_transaction)
        assert count(database) == 1  # reading goes on
    await database.write(lambda connection: insert(connection, "a"))
    assert count(database) == 2


async def test_a_current_file_opens_under_a_lock(database: Database) -> None:
    await database.close()
    again = Database(database.path, KEY_VALUES)
    with lock_of_another_process(database.path):
        again.open()
        assert count(again) == 0
    await again.write(lambda connection: insert(connection, "a"))
    await again.close()


async def test_a_file_that_must_be_migrated_does_not_open_under_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "key_values.sqlite"
    database = Database(path, KEY_VALUES)
    before = database_threads()
    with (
        lock_of_another_connection(path, "EXCLUSIVE"),
        pytest.raises(DatabaseLockedError, match="another process"),
    ):
        database.open()
    assert open_files(tmp_path) == []
    assert database_threads() == before


# --- checkpoints ---


class Checkpoints:
    """A database on few processors, or many, and who made its checkpoints."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, processors: int) -> None:
        monkeypatch.setattr(connections, "CHECKPOINT_PAGES", 20)
        monkeypatch.setattr(connections, "processors", lambda: processors)
        self.made_by: list[str] = []
        self.works = True
        """Otherwise each fails, as on a medium that cannot be read."""
        really = Database._checkpoint

        def checkpoint(database: Database, connection: apsw.Connection) -> None:
            self.made_by.append(threading.current_thread().name.removeprefix("key_values-"))
            really(
                database, connection if self.works else Mock(wal_checkpoint=Mock(side_effect=apsw.IOError))
            )

        monkeypatch.setattr(Database, "_checkpoint", checkpoint)
        self.database = Database(path, KEY_VALUES)
        self.database.open()

    async def commit(self, payload_bytes: int, times: int = 1) -> None:
        """Each time more than makes a checkpoint due, and waits for that."""
        for _ in range(times):
            key = f"k{count(self.database)}"
            await self.database.write(partial(insert, key=key, payload="x" * payload_bytes))
            await checkpoints_made(self.database)


@pytest.fixture
async def checkpoints_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[int], Checkpoints]]:
    opened: list[Checkpoints] = []

    def open_on(processors: int) -> Checkpoints:
        opened.append(Checkpoints(tmp_path / "key_values.sqlite", monkeypatch, processors))
        return opened[-1]

    yield open_on
    for one in opened:
        await one.database.close()


OpenCheckpoints = Callable[[int], Checkpoints]


@pytest.mark.parametrize(
    ("processors", "expected"), [(8, "checkpointer"), (3, "checkpointer"), (2, "writer"), (1, "writer")]
)
async def test_who_makes_checkpoints(
    checkpoints_on: OpenCheckpoints, monkeypatch: pytest.MonkeyPatch, processors: int, expected: str
) -> None:
    monkeypatch.setattr(connections, "SLOW_CHECKPOINT_S", 60.0)
    seen = checkpoints_on(processors)
    await seen.commit(100_000, times=5)
    assert seen.made_by == [expected] * 5
    assert seen.database.checkpoint_failures == 0


@pytest.mark.parametrize("fails", [False, True])
async def test_what_lasts_is_not_copied_by_the_writer_for_a_while(
    checkpoints_on: OpenCheckpoints, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(connections, "SLOW_CHECKPOINT_S", 0.0)
    seen = checkpoints_on(2)
    seen.works = not fails
    await seen.commit(100_000)
    until = seen.database._beside_until
    await seen.commit(100_000, times=4)
    assert seen.made_by == ["writer"] + ["checkpointer"] * 4
    assert seen.database._beside_until == until
    assert seen.database.checkpoint_failures == (5 if fails else 0)
    seen.database._beside_until = 0.0  # a minute later
    await seen.commit(100_000)
    assert seen.made_by[-1] == "writer"


async def test_much_is_not_copied_by_the_writer(
    checkpoints_on: OpenCheckpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a reader that kept all of it in the WAL."""
    monkeypatch.setattr(connections, "SLOW_CHECKPOINT_S", 60.0)
    monkeypatch.setattr(connections, "MOST_BY_WRITER_PAGES", 100)
    seen = checkpoints_on(2)
    reader = open_connection(seen.database.path, read_only=True)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM key_value_entries").fetchall()
    await seen.commit(100_000, times=6)
    reader.close()
    await seen.commit(100)
    assert seen.made_by == ["writer"] * 3 + ["checkpointer"] * 4
    # The next commit begins the WAL again.
    await seen.commit(100_000, times=2)
    assert seen.made_by[7:] == ["writer"] * 2


@pytest.mark.parametrize(
    ("processors", "expected"), [(2, "key_values-writer"), (8, "key_values-checkpointer")]
)
async def test_all_who_copy_the_wal_take_turns(
    checkpoints_on: OpenCheckpoints, monkeypatch: pytest.MonkeyPatch, processors: int, expected: str
) -> None:
    """In one thread: of two checkpoints at once one answers "busy"."""
    seen = checkpoints_on(processors)
    copied_by: list[str] = []
    really = upkeep.copy_wal

    def copy(connection: apsw.Connection) -> int:
        copied_by.append(threading.current_thread().name)
        return really(connection)

    monkeypatch.setattr(connections, "copy_wal", copy)
    for _ in range(8):
        await seen.database.write(partial(insert, key=f"k{count(seen.database)}", payload="x" * 8_000_000))
        await checkpoints_made(seen.database)
        relieving = asyncio.create_task(seen.database.relieve_wal())
        assert await seen.database.truncate_wal() is not None
        await relieving
    assert copied_by == [expected] * 16


async def test_a_commit_never_checkpoints(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Database, "_checkpoint", lambda *_: None)
    before = database.path.stat()
    for n in range(300):
        await database.write(lambda c, n=n: insert(c, f"k{n}", "x" * 20_000))  # type: ignore[misc]
    assert wal_bytes(database) > 1_000 * 4_096
    assert database.path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("readers", [0, 2])
async def test_the_wal_stays_bounded_under_a_writer_that_never_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readers: int
) -> None:
    monkeypatch.setattr(connections, "CHECKPOINT_PAGES", 50)
    monkeypatch.setattr(connections, "WAL_LIMIT_PAGES", 200)
    sizes: list[int] = []
    really = Database._on_commit

    def on_commit(self: Database, connection: apsw.Connection, name: str, pages: int) -> int:
        sizes.append(pages)
        return really(self, connection, name, pages)

    monkeypatch.setattr(Database, "_on_commit", on_commit)
    database = Database(tmp_path / "key_values.sqlite", KEY_VALUES)
    database.open()

    def write(connection: apsw.Connection) -> None:
        insert(connection, f"k{len(sizes)}", "x" * 20_000)

    def restarts() -> int:
        return sum(after < before for before, after in pairwise(sizes))

    async def write_on() -> None:
        while restarts() < 3 and len(sizes) < 4_000:
            for _ in range(20):
                await database.write(write)

    async def read_on() -> None:
        sql = "SELECT length(json_payload) FROM key_value_entries LIMIT 5"
        while not all(task.done() for task in writing):
            await database.read(lambda connection: connection.execute(sql).fetchall())

    # Always another job behind the one that runs: the writer has no moment of rest.
    writing = [asyncio.create_task(write_on()) for _ in range(4)]
    await asyncio.gather(*writing, *(read_on() for _ in range(readers)))
    assert restarts() >= 3  # else the WAL has the 36,000 pages of all 4,000 commits
    await database.close()


# Where it does not run between the commits of the writer.
@pytest.mark.parametrize("database", [8], indirect=True, ids=["eight processors"])
async def test_the_writer_restarts_the_wal_while_no_checkpoint_runs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CHECKPOINT_PAGES", 1)
    database._restart_from = 1
    checkpoints = 0
    done = threading.Event()
    really = Database._checkpoint

    def checkpoint(self: Database, connection: apsw.Connection) -> None:
        nonlocal checkpoints
        checkpoints += 1
        really(self, connection)
        done.set()

    monkeypatch.setattr(Database, "_checkpoint", checkpoint)

    def commit_twice(connection: apsw.Connection) -> None:
        insert(connection, "first")
        assert done.wait(PATIENCE_SECONDS)  # now the restart waits for its turn on this thread
        insert(connection, "second")

    await database.write(commit_twice)
    await database.close()
    assert (checkpoints, database.checkpoint_failures) == (1, 0)


async def test_a_checkpoint_of_a_sibling_makes_nobody_forget_a_reader_that_stays(database: Database) -> None:
    """Whoever meets one at the same moment learns nothing of how long the WAL is, or who reads it."""
    after_the_reader = 3 * connections.WAL_LIMIT_PAGES
    sibling = open_connection(database.path)
    sibling.set_busy_timeout(PATIENCE_SECONDS * 1_000)
    # Waits for the writer's lock with that for checkpoints in its hands.
    with lock_of_another_connection(database.path) as lock:
        copying = threading.Thread(
            target=sibling.wal_checkpoint, kwargs={"mode": apsw.SQLITE_CHECKPOINT_FULL}
        )
        copying.start()
        while not database.checkpoint_failures:
            database._restart_from = after_the_reader
            await database._checkpointer.run(database._checkpoint)
        assert database._restart_from == after_the_reader
        lock.release()
        copying.join()
    sibling.close()


async def test_a_reader_that_stays_does_not_stop_the_writer(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CHECKPOINT_PAGES", 10)
    monkeypatch.setattr(connections, "WAL_LIMIT_PAGES", 100)
    database._restart_from = 100
    await database.write(lambda connection: insert(connection, "seen"))
    reader = open_connection(database.path, read_only=True)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM key_value_entries").fetchall() == [(1,)]
    for n in range(100):
        await database.write(lambda c, n=n: insert(c, f"k{n}", "x" * 20_000))  # type: ignore[misc]
    assert reader.execute("SELECT count(*) FROM key_value_entries").fetchall() == [(1,)]
    assert count(database) == 101
    await checkpoints_made(database)
    # Some 900 pages at 100 to an attempt: not one for each commit.
    assert 1 <= database.checkpoint_failures <= 20
    reader.close()


async def insert_large(database: Database, count: int) -> None:
    for number in range(count):
        await database.write(partial(insert, key=f"k{number}", payload="x" * 1_000_000))


async def test_the_wal_never_grows_beyond_what_there_is_room_to_copy(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", with_free(5_000_000))
    reader = open_connection(database.path, read_only=True)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM key_value_entries").fetchall()
    with pytest.raises(apsw.FullError, match=r"the WAL of key_values.sqlite has .* end whoever reads"):
        await insert_large(database, 10)
    assert 5_000_000 <= wal_bytes(database) < 7_000_000
    with pytest.raises(apsw.FullError):
        await database.write(partial(insert, key="small"))
    before = count(database)
    reader.close()
    await database.write(partial(insert, key="after"))
    assert count(database) == before + 1
    assert wal_bytes(database) < 1_000_000


# Where it does not run between the commits of the writer.
@pytest.mark.parametrize("database", [8], indirect=True, ids=["eight processors"])
async def test_a_wal_that_another_process_has_emptied_is_no_obstacle(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it cannot be emptied anew: what was known of it was of the last commit of this one."""
    sibling = Database(database.path, KEY_VALUES)
    sibling.open()
    await insert_large(database, 8)
    await checkpoints_made(database)
    assert await sibling.truncate_wal() is not None
    await sibling.write(partial(insert, key="sibling's"))
    reader = open_connection(database.path, read_only=True)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM key_value_entries").fetchall()
    monkeypatch.setattr(os, "statvfs", with_free(5_000_000))
    assert database._is_wal_too_large()  # as it knows
    await database.write(partial(insert, key="after"))
    reader.close()
    await sibling.close()


async def test_a_wal_that_cannot_be_copied_asks_for_room(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    database.on_full = lambda: asked.append(True)
    reader = open_connection(database.path, read_only=True)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM key_value_entries").fetchall()
    await insert_large(database, 8)
    monkeypatch.setattr(os, "statvfs", with_free(5_000_000))
    with pytest.raises(apsw.FullError):
        await database.write(partial(insert, key="small"))
    assert asked == [True]
    reader.close()


async def test_threads_that_may_not_be_nice_work_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> int:
        raise PermissionError(errno.EPERM, "as a sandbox does")

    monkeypatch.setattr(os, "nice", refuse)
    database = Database(tmp_path / "key_values.sqlite", KEY_VALUES)
    await asyncio.wait_for(asyncio.to_thread(database.open), PATIENCE_SECONDS)
    await database.write(partial(insert, key="written"))
    assert count(database) == 1
    await database.close()


def with_free(free: int) -> Callable[[Path], os.statvfs_result]:
    return lambda _path: os.statvfs_result((1, 1, 1 << 50, free, free, 0, 0, 0, 0, 255))


def nobody_knows(_path: Path) -> os.statvfs_result:
    raise OSError


@pytest.mark.parametrize("answer", [with_free(1 << 40), nobody_knows], ids=["room", "unknown"])
async def test_a_large_wal_is_no_obstacle_where_there_is_room_or_nobody_knows(
    database: Database, monkeypatch: pytest.MonkeyPatch, answer: Callable[[Path], os.statvfs_result]
) -> None:
    monkeypatch.setattr(os, "statvfs", answer)
    reader = open_connection(database.path, read_only=True)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM key_value_entries").fetchall()
    await insert_large(database, 8)
    assert wal_bytes(database) > 8_000_000
    reader.close()


async def test_a_damaged_page_is_told_once_by_whoever_meets_it(database: Database) -> None:
    await insert_large(database, 3)
    await database.truncate_wal()
    with database.path.open("r+b") as file:
        file.seek(2 * 4_096)
        file.write(b"\xff" * (database.path.stat().st_size - 2 * 4_096))
    # Made anew, what connections have read before counts no more.
    await database.close()
    again = Database(database.path, KEY_VALUES)
    again._point_reader = open_connection(database.path, read_only=True)
    again._reader.open()
    again._writer.open()
    sql = "SELECT json_payload FROM key_value_entries"
    with capture_logs() as logs:
        with pytest.raises(DAMAGED):
            again.find(sql)
        with pytest.raises(DAMAGED):
            await again.read(lambda connection: connection.execute(sql).fetchall())
        with pytest.raises(DAMAGED):
            await again.write(partial(insert, key="k1"))
    await again.close()
    assert again.damage is not None
    assert await database_check(again)() == (
        f"database key_values.sqlite is damaged ({again.damage}): see docs/operations.md"
    )
    (told,) = logs
    assert told["event"] == "database_damaged"
    assert told["path"] == str(database.path)
